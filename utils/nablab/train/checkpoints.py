"""A training on disk: everything that its next step depends on, and its history."""

import io
import os
import platform
import warnings
import zlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

HISTORY = ("losses", "validation_steps", "validation_losses")
FORMAT = 2  # that of 0.1.0, without probes, is 1
# What a repeated step may differ by, relative to what it found before. A processor finds the same
# bits again, an accelerator may add up in another order. Between instruction sets (SSE4.2, AVX,
# AVX-512) a log CLs behind a network in single precision differed by 5e-9, and its gradient by
# 2e-7; but some accelerators multiply single precision with ten bits.
SAME_MACHINE, OTHER_MACHINE = 1e-5, 1e-3
SAME_INPUT = 1e-5  # of the root mean square: single precision on another machine


class Probe(NamedTuple):
    """A step as it was taken. With several seeds every leaf has their axis in front.

    Attributes:
        state: before it.
        loss, gradient: of the objective there, with the events of the step.
        updates: what the optimizer made of them.
    """

    state: Any
    loss: Array
    gradient: PyTree
    updates: PyTree

    @property
    def step(self) -> int:
        """Its number."""
        return int(self.state.step.max()) + 1


class Reached(NamedTuple):
    """How far some trainings have come.

    Attributes:
        state: all that their next step depends on.
        trainings: their histories.
        probes: the first step and a late one, for a resumption to repeat.
    """

    state: Any
    trainings: list
    probes: list[Probe]

    @property
    def step(self) -> int:
        """That of the trainings that still go on, if one does."""
        return int(self.state.step.max())


@dataclass(frozen=True)
class File:
    """The checkpoint of a training.

    Attributes:
        path: where it lies.
        identity: numbers for each input of the training.
    """

    path: str | Path
    identity: dict[str, np.ndarray]

    def try_out(self, reached: Reached) -> None:
        """Write beside the file what will be written, and delete it: a full disk is better found
        before the first step.

        Raises:
            OSError: there is no such folder, it is read-only or full.
        """
        path, cure = Path(self.path), "make room, or name a file elsewhere"
        try:
            if path.is_dir():
                cure = "name a file in it"
                raise IsADirectoryError("it is a folder")
            if not path.parent.is_dir():
                cure = "create it, or name a file elsewhere"
                raise FileNotFoundError(f"there is no folder {path.parent}")
            self._write(reached._replace(probes=[_blank_probe(reached.state)] * 2)).unlink()
        except OSError as error:
            raise OSError(f"checkpoint {path} cannot be written ({_why(error)}): {cure}") from None

    def save(self, reached: Reached) -> None:
        """Write the file at once: an interruption leaves the old one or the new one.

        Where that fails a warning says so: a training is worth more than its checkpoint.
        """
        if not reached.probes:
            return  # no step yet
        try:
            os.replace(self._write(reached), self.path)
        except OSError as error:
            warnings.warn(
                f"checkpoint {self.path} could not be written at step {reached.step} "
                f"({_why(error)}): the training is not affected, the file is as it was before",
                stacklevel=5,
            )

    def _write(self, reached) -> Path:
        arrays = {f"identity/{name}": numbers for name, numbers in self.identity.items()}
        arrays |= {"format": np.array(FORMAT), "machine": np.array(_machine())}
        arrays |= _numbered("state", reached.state)
        arrays["probes"] = np.array(len(reached.probes))
        for i, probe in enumerate(reached.probes):
            arrays |= _numbered(f"probes/{i}", probe)
        for i, training in enumerate(reached.trainings):
            arrays |= {f"{i}/{name}": np.array(getattr(training, name)) for name in HISTORY}
            arrays[f"{i}/stopped"] = np.array(training.stopped)
            arrays[f"{i}/snapshots"] = np.array([step for step, _ in training.snapshots], int)
            arrays |= _numbered(f"{i}/params", training.params)
            for j, (_, params) in enumerate(training.snapshots):
                arrays |= _numbered(f"{i}/snapshots/{j}", params)
        # In memory first: a zip file that finds the disk full complains again when it is deleted.
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        path = Path(self.path)
        unfinished = path.with_name(path.name + ".unfinished")
        try:
            with unfinished.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())  # some file systems say only now that they are full
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
        return unfinished

    def load(self, start: Reached, of_seed) -> tuple[Reached, bool]:
        """What the file holds, or ``start`` where there is none, and whether this machine wrote it.

        Raises:
            ValueError: the file is damaged, or of a training with other inputs; it names the first.
        """
        if not Path(self.path).is_file():
            return start, True
        try:
            # NumPy forgets to close a file that is no zip file.
            with Path(self.path).open("rb") as opened, np.load(opened) as file:
                stored = dict(file)
        except Exception as error:  # a damaged file makes the reader fail in any way
            if getattr(error, "errno", None):  # the file may be fine
                raise OSError(f"checkpoint {self.path} cannot be read ({_why(error)})") from None
            raise self.unfit(f"is cut off, damaged or none ({_why(error)})") from None
        if stored.get("format") != FORMAT:
            raise self.unfit("is none, or was written by an older version")
        same_machine = bool(stored["machine"] == _machine())
        for name, numbers in self.identity.items():
            if not _same_input(stored[f"identity/{name}"], numbers, same_machine):
                raise self.unfit(f"is of a training with other {name}")
        restored = partial(self._restored, stored)
        state = restored("state", start.state)
        probe = _blank_probe(start.state)
        probes = [restored(f"probes/{i}", probe) for i in range(int(stored["probes"]))]
        trainings = [
            replace(
                training,
                params=restored(f"{i}/params", training.params),
                last_params=pick(state).params,
                snapshots=[
                    (int(step), restored(f"{i}/snapshots/{j}", training.params))
                    for j, step in enumerate(stored[f"{i}/snapshots"])
                ],
                stopped=str(stored[f"{i}/stopped"]),
                **{name: stored[f"{i}/{name}"].tolist() for name in HISTORY},
            )
            for i, (pick, training) in enumerate(zip(of_seed, start.trainings, strict=True))
        ]
        return Reached(state, trainings, probes), same_machine

    def _restored(self, stored, name, like):
        leaves, structure = jax.tree.flatten(like)
        restored = []
        for n, leaf in enumerate(leaves):
            array = stored.get(f"{name}/{n}")
            if array is None or array.shape != np.shape(_plain(leaf)):
                raise self.unfit("is of a training with another optimizer")
            restored.append(_as(leaf, array))
        return jax.tree.unflatten(structure, restored)

    def compare(self, probes: list[Probe], again: list[Probe], same_machine: bool) -> None:
        """Functions have no identity, but what they give does.

        Args:
            probes: steps in the file.
            again: the same steps, repeated; with the updates for the gradients in the file.
            same_machine: that wrote the file.

        Raises:
            ValueError: they differ: it says whether the objective or the optimizer is another one.
        """
        within = SAME_MACHINE if same_machine else OTHER_MACHINE
        # At a minimum little is left of the loss and the gradient but their rounding.
        of_loss, of_gradient = (
            max(_norm(getattr(probe, name)) for probe in probes) for name in ("loss", "gradient")
        )
        for old, new in zip(probes, again, strict=True):
            if not _agree(old.loss, new.loss, within * of_loss):
                values = " and ".join(f"{np.ravel(p.loss)[0]:.9g}" for p in (old, new))
                what = f"its value in step {old.step} was and is {values}"
                raise self.unfit(f"is of a training with another objective ({what})")
            if not _agree(old.gradient, new.gradient, within * of_gradient):
                what = f"the gradient differs in step {old.step}"
                raise self.unfit(f"is of a training with another objective ({what})")
            moved = (jax.tree.leaves(tree) for tree in (old.updates, new.updates, old.state.params))
            for stored, repeated, parameter in zip(*moved, strict=True):
                rounding = 0.0 if same_machine else float(jnp.finfo(parameter.dtype).eps)
                slack = within * _norm(stored) + rounding * _norm(parameter)
                if not _agree(stored, repeated, slack):
                    what = f"it makes another step {old.step} of the same gradient"
                    raise self.unfit(
                        f"is of a training with another optimizer or learning rate ({what})"
                    )

    def unfit(self, why: str) -> ValueError:
        """An error that says what to do."""
        return ValueError(f"checkpoint {self.path} {why}: delete it, or name another file")


def identity(**inputs) -> dict[str, np.ndarray]:
    """Numbers for each input of a training, by which a checkpoint of another one is noticed.

    A checksum of all, one of all but floating-point numbers, and moments of those: random numbers
    and network weights come out a little different on another machine.
    """
    found = {}
    for name, tree in inputs.items():
        everything = exact = str(jax.tree.structure(tree)).encode()
        moments = []
        for leaf in jax.tree.leaves(tree):
            array = _plain(leaf)
            form, checksum = f"{array.dtype}{array.shape}", f" {zlib.crc32(array.tobytes())} "
            everything += (form + checksum).encode()
            inexact = jnp.issubdtype(array.dtype, jnp.floating)
            exact += (form if inexact else form + checksum).encode()
            moments += _moments(array.ravel()) if inexact else []
        found[name] = np.array([zlib.crc32(everything), zlib.crc32(exact), *moments])
    return found


def _moments(array, at_once=1_000_000) -> list[float]:
    """Root mean square of the finite entries, their mean, their mean where later ones count more,
    and how many there are."""
    sums = np.zeros(3)
    count = 0
    for first in range(0, array.size, at_once):
        part = array[first : first + at_once].astype(float)
        finite = np.isfinite(part)
        part = np.where(finite, part, 0.0)
        place = np.arange(first, first + part.size) / array.size
        sums += part @ part, part.sum(), part @ place
        count += int(finite.sum())
    square, *means = sums / max(array.size, 1)
    return [float(np.sqrt(square)), *means, float(count)]


def _same_input(stored, here, same_machine) -> bool:
    if same_machine or len(stored) != len(here) or stored[1] != here[1]:
        return bool(stored[0] == here[0])
    old, new = (np.reshape(numbers[2:], (-1, 4)) for numbers in (stored, here))
    near = np.abs(old - new)[:, :3] <= SAME_INPUT * old[:, :1]
    return bool(near.all() and np.array_equal(old[:, 3], new[:, 3]))


def _machine() -> int:
    """A number for what computes here."""
    here = platform.node(), jax.__version__, jax.devices()[0].device_kind
    return zlib.crc32(repr(here).encode())


def _blank_probe(state) -> Probe:
    """One of the right form."""
    return Probe(state, jnp.zeros(state.step.shape), state.params, state.params)


def _agree(one, other, slack) -> bool:
    """Whether two trees are at most ``slack`` apart; what is not finite is so in both."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return _norm([np.asarray(a, float) - np.asarray(b, float) for a, b in pairs]) <= slack and all(
        np.array_equal(np.isfinite(a), np.isfinite(b))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def _norm(tree) -> float:
    """Of the finite entries."""
    leaves = [np.asarray(leaf, float) for leaf in jax.tree.leaves(tree)]
    return float(np.sqrt(sum(np.sum(leaf[np.isfinite(leaf)] ** 2) for leaf in leaves)))


def _why(error) -> str:
    """The message of an error in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]


def _plain(leaf) -> np.ndarray:
    """An array that NumPy can write; a random key as its numbers."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _as(leaf, array):
    """What :func:`_plain` made of such a leaf, turned back."""
    dtype = jnp.asarray(leaf).dtype
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
    return jnp.asarray(array, dtype)


def _numbered(name, tree) -> dict[str, np.ndarray]:
    return {f"{name}/{n}": _plain(leaf) for n, leaf in enumerate(jax.tree.leaves(tree))}
