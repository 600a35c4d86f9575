"""An interrupted training that is resumed ends bit for bit where it would have ended."""

import errno
import itertools
import os
import resource

import interruption
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nablab.train import checkpoints, loop, networks, stepping

KEY = jax.random.key(11)
ADAM = optax.adam(0.01)
EVENTS = {"x": jax.random.normal(KEY, (200, 2)), "y": 1.0 + jax.random.normal(KEY, (50, 2))}
VALIDATION = {name: sample[:40] + 0.1 for name, sample in EVENTS.items()}
NETWORK, START = networks.mlp((2, 8, 1), key=jax.random.key(0))
OTHER = networks.mlp((2, 8, 1), key=jax.random.key(1))[1]
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


def train(
    path=None, steps=40, events=EVENTS, validation=VALIDATION, key=KEY, objective=misfit, **changes
):
    return loop.train(
        objective, START, events, validation, steps=steps, key=key, checkpoint=path,
        **(SETTINGS | changes),
    )  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "training.npz"


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
            interruption.at_call(patch, loop, "_followed", call)
            stopped = train(path)
        assert stopped.stopped == "interrupted"
        lengths.append(len(stopped.losses))
    assert lengths == sorted(lengths)
    assert lengths[-1] < 40
    assert same_bits(train(path), whole)
    assert len(whole.validation_losses) == 6
    # A training that has ended is read from the file: only the two probes run.
    interruption.at_call(monkeypatch, loop, "_followed", 1)
    assert same_bits(train(path), whole)


def test_a_killed_process_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    """No chance to tidy up: the file written on the way is all there is."""
    path, copy = tmp_path / "training.npz", tmp_path / "copy.npz"
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    save, saves = checkpoints.File.save, itertools.count(1)

    def copied_at_third(file, reached):
        save(file, reached)
        if next(saves) == 3:
            copy.write_bytes(path.read_bytes())

    monkeypatch.setattr(checkpoints.File, "save", copied_at_third)
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
        interruption.at_call(patch, loop, "_followed", 4)
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


def scaled(params, events):
    return 1.0001 * misfit(params, events)


def same_value(params, events):
    """Half of the gradient."""
    value = misfit(params, events)
    return value / 2 + jax.lax.stop_gradient(value) / 2


def same_at_first(params, events):
    """Another objective only where the training has been for long."""
    moved = jnp.abs(jax.tree.leaves(params)[0] - jax.tree.leaves(START)[0]).max().astype(float)
    return misfit(params, events) + jnp.maximum(moved - 0.05, 0.0)


@pytest.mark.parametrize(
    ("objective", "why"),
    [
        (scaled, "its value in step 1 was and is 0"),
        (same_value, "the gradient differs in step 1"),
        (same_at_first, "its value in step 40 was and is 0"),
    ],
)
def test_checkpoint_of_another_objective_is_refused(objective, why, path, monkeypatch):
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)  # the late probe is the last step
    train(path)
    with pytest.raises(ValueError, match=rf"of a training with another objective \({why}"):
        train(path, objective=objective)
    assert len(train(path).losses) == 40


def steps_of(*rates):
    """Another learning rate after each 10 steps."""
    ratios = [after / before for before, after in itertools.pairwise(rates)]
    return optax.sgd(
        optax.piecewise_constant_schedule(
            rates[0], {10 * (n + 1): ratio for n, ratio in enumerate(ratios)}
        )
    )


@pytest.mark.parametrize(
    ("before", "after", "step"),
    [
        (ADAM, optax.adam(0.01001), 1),
        (ADAM, optax.adam(0.01, b2=0.99), 20),  # the first step of Adam knows no decay rate
        (optax.sgd(0.1), optax.sgd(0.2), 1),
        (optax.sgd(0.1), optax.chain(optax.sgd(0.1), optax.keep_params_nonnegative()), 1),
        (steps_of(0.1, 0.2), steps_of(0.2, 0.2), 1),  # not any more
        (steps_of(0.1, 0.2), steps_of(0.1, 0.1), 20),  # not yet
    ],
)
def test_checkpoint_of_another_optimizer_is_refused(before, after, step, path, monkeypatch):
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    train(path, steps=20, optimizer=before, validation=None)
    why = rf"another optimizer or learning rate \(it makes another step {step} of the same gradient"
    with pytest.raises(ValueError, match=why):
        train(path, optimizer=after, validation=None)
    assert len(train(path, optimizer=before, validation=None).losses) == 40


def test_optimizer_with_another_state_is_refused(path):
    train(path, steps=5, optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match="is of a training with another optimizer: delete it, or"):
        train(path, steps=5)


def test_random_key_of_an_optimizer_is_restored(path):
    noisy = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.sgd(0.1))
    settings = {"optimizer": noisy, "validation": None}
    train(path, steps=20, **settings)
    assert same_bits(train(path, **settings), train(**settings))


def test_fewer_steps_than_done_are_refused(path):
    train(path, steps=20)
    with pytest.raises(ValueError, match="is at step 20 already, but steps is 19"):
        train(path, steps=19)


def test_a_resumption_says_from_where(path, monkeypatch, capsys):
    settings = {"patience": 1, "check_every": 10}
    with monkeypatch.context() as patch:
        interruption.at_call(patch, loop, "_followed", 3)
        done = len(train(path, **settings).losses)
    assert capsys.readouterr().err == ""
    train(path, steps=10, **settings)
    assert capsys.readouterr().err == f"checkpoint {path}: going on from step {done} of 10\n"
    train(path, steps=10, **settings)
    assert capsys.readouterr().err == f"checkpoint {path}: all 10 steps are done, nothing to do\n"
    uphill = path.with_name("uphill.npz")
    for _ in range(2):
        train(uphill, optimizer=optax.sgd(-0.5), **settings)
    reason = "ended at step 20 (no improvement in 1 looks at the validation sample), nothing to do"
    assert capsys.readouterr().err == f"checkpoint {uphill}: {reason}\n"


def elsewhere(monkeypatch):
    monkeypatch.setattr(checkpoints, "_machine", lambda: 1)


def test_another_machine_computes_a_little_differently(path, monkeypatch):
    """Random events and the objective, at 10 times what other instruction sets were found to do."""
    train(path, steps=20)
    other = {name: sample * (1 + 1e-6) for name, sample in EVENTS.items()}
    with pytest.raises(ValueError, match="other events"):
        train(path, events=other)
    with pytest.raises(ValueError, match="another objective"):
        train(path, objective=scaled)
    elsewhere(monkeypatch)
    assert len(train(path, steps=21, events=other, objective=scaled).losses) == 21


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("other events", {"events": EVENTS | {"y": EVENTS["y"] + 1e-4}}),
        ("other events", {"events": EVENTS | {"y": EVENTS["y"][::-1]}}),
        ("other events", {"events": EVENTS | {"y": EVENTS["y"].at[0, 0].set(jnp.nan)}}),
        ("other events", {"events": EVENTS | {"y": EVENTS["y"][:-1]}}),
        ("other key", {"key": jax.random.key(12)}),
        ("another objective", {"objective": lambda p, e: 1.01 * misfit(p, e)}),
        ("another optimizer or learning rate", {"optimizer": optax.adam(0.0101)}),
    ],
)
def test_another_training_is_refused_elsewhere_too(name, changes, path, monkeypatch):
    train(path, steps=5)
    elsewhere(monkeypatch)
    with pytest.raises(ValueError, match=f"of a training with {name}"):
        train(path, **changes)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_a_file_that_was_cut_off_gets_one_sentence(kept, path):
    train(path, steps=5)
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ValueError, match=r"training\.npz is cut off, damaged or none") as error:
        train(path)
    assert "\n" not in str(error.value)
    assert error.value.__suppress_context__


def test_damaged_files_get_one_sentence(path):
    train(path, steps=5)
    content = bytearray(path.read_bytes())
    for place in np.random.default_rng(1).integers(0, len(content), 100):
        damaged = content.copy()
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:  # some bytes mean nothing, such as the date
            train(path, steps=5)
        except ValueError as error:
            assert str(error).startswith(f"checkpoint {path} is ")
            assert str(error).endswith(": delete it, or name another file")


def test_file_that_is_no_checkpoint_is_refused(path):
    np.savez(path, other=jnp.zeros(2))
    with pytest.raises(ValueError, match="is none, or was written by an older version"):
        train(path)


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only(*_):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize(
    ("name", "opens", "message"),
    [
        ("no/training.npz", None, r"\(there is no folder .*no\): create it, or name"),
        ("file/training.npz", None, r"\(there is no folder .*file\): create it, or name"),
        ("", None, r"\(it is a folder\): name a file in it$"),
        ("training.npz", full, r"\(No space left on device\): make room, or name"),
        ("training.npz", read_only, r"\(Read-only file system\): make room, or name"),
    ],
)
def test_a_place_where_nothing_can_be_written_is_found_first(
    name, opens, message, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(stepping, "advance", None)  # cannot be called
    if opens:
        monkeypatch.setattr(checkpoints.os, "fsync", opens)
    with pytest.raises(OSError, match=rf"^checkpoint .* cannot be written {message}"):
        train(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def small_disk():
    """From now on no file can be longer than 4096 bytes: the system really refuses the rest."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_is_full_from_the_start(path, small_disk):
    small_disk()
    with pytest.raises(OSError, match=r"cannot be written \(File too large\): make room"):
        train(path)


def test_a_disk_that_fills_up_later_costs_the_checkpoint_only(path, small_disk, monkeypatch):
    settings = {"check_every": 10}
    whole = train(**settings)
    train(path, steps=20, **settings)
    before = path.read_bytes()
    try_out = checkpoints.File.try_out

    def then_full(*arguments):
        try_out(*arguments)
        small_disk()

    monkeypatch.setattr(checkpoints.File, "try_out", then_full)
    with pytest.warns(UserWarning, match=r"could not be written at step 40 \(File too large\)"):
        training = train(path, **settings)
    assert same_bits(training, whole)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_an_objective_that_fails_on_the_way_leaves_a_checkpoint(path, monkeypatch):
    """Such as a validation sample that does not fit into the memory."""
    with monkeypatch.context() as patch:
        patch.setattr(stepping, "evaluate", full)
        with pytest.raises(OSError, match="No space"):
            train(path)
    with np.load(path) as file:
        assert 3 < len(file["0/losses"]) < 7
    assert same_bits(train(path), train())
