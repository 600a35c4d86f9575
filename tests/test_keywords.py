"""After the data, everything has a name: nothing can be taken for something else.

``hard_counts(x, edges, weights)`` took the weights for a bandwidth, which it does not use.
"""

import importlib
import inspect
import pkgutil

import pytest

import nablab
from nablab.relax.cuts import hard_cut, soft_cut
from nablab.relax.histograms import hard_counts

#: What a function works on: after these, settings follow.
DATA = set(
    "x y edges x_edges y_edges above centre radii events counts slopes values mask jagged bins "
    "signal background logits labels reference boundaries histogram nominal lepton_cut mean "
    "low high pt eta phi mass model truth data samples number held_out second "
    "ax extent threshold slope frames".split()
)
#: By position only what the question is about.
ASKED = {"mu", "parameter", "parameters", "validation", "location"}


def public_functions():
    for module in pkgutil.walk_packages(nablab.__path__, "nablab."):
        module = importlib.import_module(module.name)
        for name, function in vars(module).items():
            here = getattr(function, "__module__", None) == module.__name__
            if here and callable(function) and not inspect.isclass(function) and name[0] != "_":
                yield pytest.param(function, id=f"{module.__name__.removeprefix('nablab.')}.{name}")


def by_position(function):
    parameters = list(inspect.signature(function).parameters.values())
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in parameters if p.kind in kinds]


@pytest.mark.parametrize("function", list(public_functions()))
def test_no_setting_with_a_default_follows_the_data_by_position(function):
    positional = by_position(function)
    names = [p.name for p in positional]
    last = max((i for i, name in enumerate(names) if name in DATA), default=None)
    if last is None:
        return
    optional = {p.name for p in positional[last + 1 :] if p.default is not p.empty}
    assert optional <= ASKED


def outside_of(*rooms):
    return [p for p in public_functions() if not p.id.startswith(rooms)]


@pytest.mark.parametrize("function", list(public_functions()))
def test_random_keys_are_called_key_and_given_by_name(function):
    parameters = inspect.signature(function).parameters
    keys = [p for p in parameters.values() if "Key" in str(p.annotation)]
    assert {p.name for p in keys} <= {"key", "keys"}
    kinds = {p.kind for p in keys} | {p.kind for p in parameters.values() if p.name == "key"}
    assert kinds <= {inspect.Parameter.KEYWORD_ONLY}
    assert not {"rng", "rngs"} & set(parameters)


def test_only_an_index_and_a_name_are_called_poi():
    for function in (p.values[0] for p in outside_of("infer")):
        names = {
            name for name in inspect.signature(function).parameters if "poi" in name.split("_")
        }
        assert names <= {"poi_index", "poi_name"}, function


def test_the_rule_sees_what_it_is_for():
    found = {p.id for p in public_functions()}
    assert {"relax.histograms.hard_counts", "train.objectives.dependence"} <= found
    assert {"infer.limits.upper_limit", "data.opendata.split"} <= found
    assert len(found) > 100


def test_weights_in_the_place_of_a_bandwidth_are_refused():
    x, weights = [0.2, 0.4, 0.7], [2.0, 2.0, 2.0]
    with pytest.raises(TypeError, match="positional argument"):
        hard_counts(x, [0.0, 1.0], weights)
    assert hard_counts(x, [0.0, 1.0], weights=weights).values[0] == 6.0
    for cut in (hard_cut, soft_cut):
        with pytest.raises(TypeError, match="positional argument"):
            cut(x, 0.5, weights)
