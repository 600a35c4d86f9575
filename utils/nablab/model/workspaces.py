"""pyhf workspaces: read one, with its patches, into a model and data, and write one.

The semantics are those of ``pyhf.Workspace`` and ``pyhf.PatchSet``. All numbers may be traced:
yields, observations, those of the measurement and of the patches.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nablab import checks
from nablab.checks import Numbers
from nablab.model import _forms, named_numbers
from nablab.model._parameter_sets import unique
from nablab.model.histfactory import Model, from_spec

Document = dict | str | Path


def read(
    workspace: Document,
    measurement: str | None = None,
    patches: Sequence = (),
    codes: dict[str, str] | None = None,
    poi_name: str | None = None,
) -> tuple[Model, Float[Array, "data"]]:
    """Model and data (main, then auxiliary) of a workspace.

    Args:
        workspace: the dict or ``pyhf.Workspace``, or the path of its JSON file.
        measurement: the name of one; it says which parameter is of interest and configures the
            parameters. By default the first, as in pyhf.
        patches: see :func:`patched`.
        codes: interpolation codes, see :func:`~nablab.model.from_spec`; a workspace does
            not say which.
        poi_name: the parameter of interest, in place of the measurement's; ``""`` for a model
            without one, which is also what an empty name in the measurement means.

    Raises:
        ValueError: see :func:`patched` and :func:`~nablab.model.from_spec`; also observations that
            are
            absent, there twice, of the wrong length, negative or not finite.
        pyhf.exceptions.InvalidSpecification, InvalidMeasurement, InvalidModel, ...: pyhf's own
            message for a workspace of the wrong form.
    """
    workspace = patched(workspace, patches)
    form = _forms.form(workspace, "workspace")
    index = _measurement(json.dumps(form), measurement)
    config = workspace["measurements"][index]["config"]
    spec = {"channels": workspace["channels"], "parameters": config["parameters"]}
    poi_name = config["poi"] if poi_name is None else poi_name
    model = from_spec(spec, poi_name=poi_name, codes=codes)
    bins = _bins(form)
    unique("observations", [entry["name"] for entry in form["observations"]])
    lengths = {entry["name"]: _forms.length(entry["data"]) for entry in form["observations"]}
    for channel, length in bins.items():
        if lengths.get(channel) != length:
            raise ValueError(
                f"the workspace has {lengths.get(channel, 'no')} observations in channel "
                f"{channel!r}, which has {length} bins"
            )
    counts = {entry["name"]: entry["data"] for entry in workspace["observations"]}
    known, _, traced = named_numbers.flat([counts[channel] for channel in bins])
    data = jnp.concatenate([known if traced is None else traced, model.auxdata])
    model.check_data(data)
    return model, data


@functools.lru_cache(maxsize=256)
def _measurement(form: str, name: str | None) -> int:
    """Which measurement of a workspace without numbers pyhf takes."""
    import pyhf

    # Some numbers of each list are enough to judge the form.
    with _forms.explained(_forms.spread(json.loads(form), most=4)) as some:
        workspace = pyhf.Workspace(some)
    return workspace["measurements"].index(workspace.get_measurement(name))


def _bins(form) -> dict[str, int]:
    """Bins of each channel, in pyhf's order."""
    bins = {c["name"]: _forms.length(c["samples"][0]["data"]) for c in form["channels"]}
    return dict(sorted(bins.items()))


def patched(workspace: Document, patches: Sequence) -> dict:
    """A copy of the workspace with JSON patches (RFC 6902) applied, one after the other.

    Args:
        workspace: the dict or ``pyhf.Workspace``, or the path of its JSON file.
        patches: each one a list of operations, a single operation, a patch of a ``pyhf.PatchSet``,
            the path of a JSON file with one of these, or a pair ``(patch set, which)``. The patch
            set is a dict, a path or a ``pyhf.PatchSet``, and ``which`` the name or the values of
            the patch; the patch set's digests must be those of the workspace, as in pyhf.

    Raises:
        ValueError: a file that is no JSON, a patch that is none of these, or one that does not fit
            the workspace.
        pyhf.exceptions.PatchSetVerificationError, InvalidPatchLookup, InvalidSpecification: pyhf's
            own message for another workspace's patch set, an unknown patch, a wrong patch set.
    """
    import jsonpatch

    result = named_numbers.skeleton(_load(workspace))
    if not isinstance(result, dict):
        raise ValueError(f"workspace is a {type(result).__name__}: it must be a dict or a path")
    for i, patch in enumerate(patches):
        try:
            operations = named_numbers.skeleton(_operations(patch, result))
            result = jsonpatch.JsonPatch(operations).apply(result, in_place=True)
        except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
            # The library's message ends in the whole workspace.
            message = str(error) if len(str(error)) < 200 else f"{str(error)[:200]} ..."
            raise ValueError(f"patches[{i}] does not fit the workspace: {message}") from None
    return result


def _operations(patch, workspace) -> list:
    """The operations of a patch in one of its forms."""
    import jsonpatch
    import pyhf

    if isinstance(patch, tuple) and len(patch) == 2:
        patch_set, which = patch
        if not isinstance(patch_set, pyhf.PatchSet):
            patch_set = pyhf.PatchSet(_load(patch_set))
        patch = patch_set[which]
        patch_set.verify(plain(workspace))
    if isinstance(patch, str | Path):
        patch = _load(patch)
    if isinstance(patch, jsonpatch.JsonPatch):
        patch = patch.patch
    if isinstance(patch, dict):
        patch = patch["patch"] if "patch" in patch else [patch]
    is_operation = [isinstance(entry, dict) and "op" in entry for entry in patch]
    if isinstance(patch, list) and all(is_operation):
        return patch
    raise ValueError(
        "a patch must be a list of JSON patch operations, or (patch set, name or values of one of "
        f"its patches), not {str(patch)[:100]}"
    )


def _load(document: Document):
    if not isinstance(document, str | Path):
        return document
    if isinstance(document, str) and document.lstrip().startswith(("{", "[")):
        raise ValueError(
            f"{document.strip()[:20]!r}... is the text of a JSON file where its path is expected: "
            "give the path, or json.loads of the text"
        )
    try:  # as bytes, whose encoding JSON can tell: UTF-8, with or without a mark, in any locale
        return json.loads(Path(document).read_bytes())
    except ValueError as error:
        raise ValueError(f"{document} is not a JSON file: {error}") from None


def assemble(
    spec: dict,
    observed: Float[Numbers, "bins"],
    poi_name: str = "mu",
    measurement: str = "measurement",
) -> dict:
    """A workspace with one measurement, of a specification and the counts observed in it.

    Args:
        spec: what :func:`~nablab.model.from_spec` takes.
        observed: main data, channels in alphabetic order, as in ``model.expected_main``.
        poi_name: the parameter of interest.
        measurement: name of the measurement.

    Returns:
        What :func:`read` and :func:`write` take. Its numbers are those given, traced or not.

    Raises:
        ValueError: the observed counts are not one for each bin.
    """
    bins = _bins(_forms.form(spec))
    if jnp.shape(observed) != (sum(bins.values()),):
        raise ValueError(
            f"observed has shape {jnp.shape(observed)}, but the model has {sum(bins.values())} bins"
        )
    stops = np.cumsum(list(bins.values()))
    return {
        "channels": spec["channels"],
        "observations": [
            {"name": name, "data": observed[stop - length : stop]}
            for (name, length), stop in zip(bins.items(), stops, strict=True)
        ],
        "measurements": [
            {
                "name": measurement,
                "config": {"poi": poi_name, "parameters": spec.get("parameters", [])},
            }
        ],
        "version": "1.0.0",
    }


def write(workspace: dict, path: str | Path | None = None) -> dict:
    """The workspace in plain Python numbers, as pyhf takes it; and into a JSON file.

    Args:
        workspace: for example with trained numbers in it (:func:`entries.with_numbers`).
        path: of the file; none is written if not given.

    Raises:
        ValueError: a number is traced or not finite.
        pyhf.exceptions.InvalidSpecification: pyhf's own message for a workspace of the wrong form.
    """
    import pyhf

    result = dict(pyhf.Workspace(plain(workspace)))
    for entry in named_numbers.entries(result):
        checks.finite(entry.name, entry.holder[entry.key])
    if path is not None:
        Path(path).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def plain(value, place: str = "workspace"):
    """The same with lists and Python numbers in place of arrays."""
    if isinstance(value, dict):
        return {key: plain(entry, f"{place}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, f"{place}[{i}]") for i, entry in enumerate(value)]
    if value is None or isinstance(value, bool | str | int | float):
        return value
    if checks.is_traced(value) or checks.is_traced(getattr(value, "vector", None)):
        raise ValueError(
            f"{place} is a traced value: a workspace is written, and the digest of a patch set "
            "verified, outside of jit and grad"
        )
    return np.asarray(value).tolist()
