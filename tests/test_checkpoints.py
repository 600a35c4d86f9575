"""An interrupted training that is resumed ends bit for bit where it would have ended."""

import itertools

import interruption
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nablab.train import checkpoints, loop, networks

KEY = jax.random.key(11)
ADAM = optax.adam(0.01)
EVENTS = {"x": jax.random.normal(KEY, (200, 2)), "y": 1.0 + jax.random.normal(KEY, (50, 2))}
VALIDATION = {name: sample[:40] + 0.1 for name, sample in EVENTS.items()}
NETWORK, START = networks.mlp((2, 8, 1), jax.random.key(0))
OTHER = networks.mlp((2, 8, 1), jax.random.key(1))[1]
SETTINGS = {
    "optimizer": ADAM,
    "batch_size": 10,
    "check_every": 7,
    "snapshot_every": 5,
    "progress": False,
}


def misfit(params, events):
    x, y = (jax.nn.sigmoid(NETWORK(params, events[name])).mean() for name in "xy")
    return (x**2 + (1 - y) ** 2).astype(float)


def train(path=None, steps=40, events=EVENTS, validation=VALIDATION, key=KEY, **changes):
    return loop.train(
        misfit, START, events, validation, steps=steps, key=key, checkpoint=path,
        **(SETTINGS | changes),
    )  # fmt: skip


def same_bits(first, second):
    leaves, others = jax.tree.leaves(vars(first)), jax.tree.leaves(vars(second))
    assert len(leaves) == len(others)
    return all(np.array_equal(a, b) for a, b in zip(leaves, others, strict=True))


@pytest.mark.parametrize("calls", [[1], [2, 3], [5, 1, 4]])
def test_resumed_training_is_identical(calls, tmp_path, monkeypatch):
    whole = train()
    path = tmp_path / "training.npz"
    lengths = []
    for call in calls:
        with monkeypatch.context() as patch:
            interruption.at_call(patch, loop, "_advance", call)
            stopped = train(path)
        assert stopped.stopped == "interrupted"
        lengths.append(len(stopped.losses))
    assert lengths == sorted(lengths)
    assert lengths[-1] < 40
    assert same_bits(train(path), whole)
    assert len(whole.validation_losses) == 6
    # A training that has ended is read from the file: nothing runs.
    interruption.at_call(monkeypatch, loop, "_advance", 1)
    assert same_bits(train(path), whole)


def test_a_killed_process_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    """No chance to tidy up: the file written on the way is all there is."""
    path, copy = tmp_path / "training.npz", tmp_path / "copy.npz"
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    save, saves = checkpoints.save, itertools.count(1)

    def copied_at_third(target, *contents):
        save(target, *contents)
        if next(saves) == 3:
            copy.write_bytes(path.read_bytes())

    monkeypatch.setattr(checkpoints, "save", copied_at_third)
    whole = train(path)
    resumed = train(copy)
    assert same_bits(resumed, whole)
    assert not list(tmp_path.glob("*.unfinished"))


def test_more_steps_go_on_from_the_end(tmp_path):
    path = tmp_path / "training.npz"
    settings = {"check_every": 10, "snapshot_every": None}
    train(path, steps=20, **settings)
    assert same_bits(train(path, steps=40, **settings), train(steps=40, **settings))


def test_early_stop_is_remembered(tmp_path):
    path = tmp_path / "training.npz"
    settings = {"patience": 1, "optimizer": optax.sgd(-0.5)}  # uphill
    first = train(path, **settings)
    assert first.stopped == "no improvement in 1 looks at the validation sample"
    assert same_bits(train(path, **settings), first)


def test_seeds_resume_too(tmp_path, monkeypatch):
    path = tmp_path / "seeds.npz"
    keys = jax.random.split(KEY, 2)

    def run(path=None):
        return loop.train_seeds(
            misfit, [START, OTHER], EVENTS, VALIDATION, keys=keys, steps=30, checkpoint=path,
            **SETTINGS,
        )  # fmt: skip

    whole = run()
    with monkeypatch.context() as patch:
        interruption.at_call(patch, loop, "_advance", 4)
        assert {training.stopped for training in run(path)} == {"interrupted"}
    for resumed, expected in zip(run(path), whole, strict=True):
        assert same_bits(resumed, expected)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("events", {"events": EVENTS | {"x": EVENTS["x"].at[3, 1].add(1e-9)}}),
        ("validation", {"validation": None}),
        ("key", {"key": jax.random.key(12)}),
        ("batch_size", {"batch_size": 11}),
        ("check_every", {"check_every": 8}),
        ("snapshot_every", {"snapshot_every": None}),
    ],
)
def test_checkpoint_of_another_training_is_refused(name, changes, tmp_path):
    path = tmp_path / "training.npz"
    train(path, steps=5)
    with pytest.raises(ValueError, match=f"training.npz is of a training with other {name}"):
        train(path, steps=5, **changes)


def test_checkpoint_of_another_optimizer_is_refused(tmp_path):
    path = tmp_path / "training.npz"
    train(path, steps=5, optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match="does not fit this optimizer"):
        train(path, steps=5)


def test_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "training.npz"
    np.savez(path, other=jnp.zeros(2))
    with pytest.raises(ValueError, match="is of a training with other params"):
        train(path)
