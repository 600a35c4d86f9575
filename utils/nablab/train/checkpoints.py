"""A training on disk: everything that its next step depends on, and its history."""

import os
import zlib
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

HISTORY = ("losses", "validation_steps", "validation_losses")


def identity(**inputs) -> dict[str, int]:
    """A number for each input of a training, by which a checkpoint of another one is noticed."""
    found = {}
    for name, tree in inputs.items():
        text = str(jax.tree.structure(tree)).encode()
        for leaf in jax.tree.leaves(tree):
            array = _plain(leaf)
            text += f"{array.dtype}{array.shape}{zlib.crc32(array.tobytes())}".encode()
        found[name] = zlib.crc32(text)
    return found


def save(path, identity, state, trainings) -> None:
    """Write the file at once: an interruption leaves the old one or the new one."""
    arrays = {f"identity/{name}": np.array(number) for name, number in identity.items()}
    arrays |= _numbered("state", state)
    for i, training in enumerate(trainings):
        arrays |= {f"{i}/{name}": np.array(getattr(training, name)) for name in HISTORY}
        arrays[f"{i}/stopped"] = np.array(training.stopped)
        arrays[f"{i}/snapshots"] = np.array([step for step, _ in training.snapshots], int)
        arrays |= _numbered(f"{i}/params", training.params)
        for j, (_, params) in enumerate(training.snapshots):
            arrays |= _numbered(f"{i}/snapshots/{j}", params)
    path = Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(unfinished, path)


def load(path, identity, state, trainings, of_seed):
    """The state and trainings in the file, or those given where there is none.

    Raises:
        ValueError: the file is of a training with other inputs; it names the first of them.
    """
    if not Path(path).exists():
        return state, trainings
    with np.load(path) as file:
        stored = dict(file)
    for name, number in identity.items():
        if stored.get(f"identity/{name}") != number:
            raise ValueError(
                f"checkpoint {path} is of a training with other {name}: delete it, or name "
                "another file"
            )
    state = _restored(path, stored, "state", state)
    found = []
    for i, (pick, training) in enumerate(zip(of_seed, trainings, strict=True)):
        history = {name: stored[f"{i}/{name}"].tolist() for name in HISTORY}
        found.append(
            replace(
                training,
                params=_restored(path, stored, f"{i}/params", training.params),
                last_params=pick(state).params,
                snapshots=[
                    (int(step), _restored(path, stored, f"{i}/snapshots/{j}", training.params))
                    for j, step in enumerate(stored[f"{i}/snapshots"])
                ],
                stopped=str(stored[f"{i}/stopped"]),
                **history,
            )
        )
    return state, found


def _plain(leaf) -> np.ndarray:
    """An array that NumPy can write; a random key as its numbers."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _numbered(name, tree) -> dict[str, np.ndarray]:
    return {f"{name}/{n}": _plain(leaf) for n, leaf in enumerate(jax.tree.leaves(tree))}


def _restored(path, stored, name, like):
    leaves, structure = jax.tree.flatten(like)
    restored = []
    for n, leaf in enumerate(leaves):
        array = stored.get(f"{name}/{n}")
        if array is None or array.shape != np.shape(_plain(leaf)):
            raise ValueError(
                f"checkpoint {path} does not fit this optimizer: delete it, or name another file"
            )
        restored.append(jnp.asarray(array, jnp.asarray(leaf).dtype))
    return jax.tree.unflatten(structure, restored)
