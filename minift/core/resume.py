"""Stop and resume: one file holds everything that the next training step depends on.

A resumed run must give the same as a run that was never stopped, to the last bit. So besides the weights the state
holds the optimizer's moments, the position in the data, the random numbers (dropout), the best evaluation and the
history. Left out: frozen parameters, which training does not change (the caller loads the same base again).
"""

import tempfile
import warnings
from pathlib import Path

import torch

from minift.core.files import read_tensors, write_tensors
from minift.errors import MiniftError

FORMAT = "minift training state"


class TrainingState:
    """A run between two steps: model, optimizer, position in the data, history; `save` and `load` use a file."""

    def __init__(self, model, optimizer, batches, device, settings):
        self.model, self.optimizer, self.batches = model, optimizer, batches
        self.device, self.settings = device, settings
        self.step, self.best, self.history = 0, None, []
        # Batches used since the start of the run.
        self.n_batches = 0
        # The value of the iterable's own epoch counter, if it has one, at the start of the run.
        self.first_epoch = getattr(batches, "epoch", None)
        self.stream = endless(batches)
        # Whether train.warn_untrained has looked for parameters without a gradient.
        self.checked_gradients = False

    def next_batch(self):
        self.n_batches += 1
        return move_batch(next(self.stream), self.device)

    def parameters(self):
        """name -> trainable parameter, in the order in which the optimizer numbers them."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        found = {}
        for group in self.optimizer.param_groups:
            found |= {names[id(p)]: p for p in group["params"]}
        return found

    def save(self, path):
        """Write the state to `path`, atomically: a crash leaves the older state whole."""
        tensors = random_state(self.device)
        # Parameter number -> {"exp_avg": ..., ...}.
        moments = self.optimizer.state_dict()["state"]
        for number, (name, parameter) in enumerate(self.parameters().items()):
            tensors[f"model.{name}"] = parameter.detach()
            for key, value in moments.get(number, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        metadata = {
            "kind": FORMAT, "step": self.step, "n_batches": self.n_batches,
            "first_epoch": self.first_epoch, "best": self.best, "settings": self.settings,
            "machine": machine_record(), "history": self.history}
        write_tensors(path, tensors, metadata)

    def load(self, path):
        """Restore the state in `path`: weights, moments, counters, the data's position, the random numbers last.

        Raises MiniftError when there is no such file, or when it belongs to a model with other trainable parameters.
        """
        if path is None or not Path(path).is_file():
            raise MiniftError(
                f"there is no training state at {path} to resume from; leave out resume to start anew")
        tensors, saved = read_tensors(path)
        if saved.get("kind") != FORMAT:
            raise MiniftError(
                f"{path} is not a training state; resume from the file that train wrote to state_path")
        self._check(path, tensors, saved)
        with torch.no_grad():
            for name, parameter in self.parameters().items():
                parameter.copy_(tensors[f"model.{name}"])
        self._load_moments(tensors)
        self.step, self.best, self.history = saved["step"], saved["best"], saved["history"]
        self._fast_forward(saved["n_batches"], saved["first_epoch"])
        set_random_state(tensors, self.device)

    def _check(self, path, tensors, saved):
        # Another model cannot go on from this state.
        mine = {f"model.{name}": p.shape for name, p in self.parameters().items()}
        theirs = {name: t.shape for name, t in tensors.items() if name.startswith("model.")}
        differing = sorted(
            name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        if differing:
            name = differing[0]
            raise MiniftError(
                f"{path} belongs to another model: {name[6:]} has shape {_shape(theirs.get(name))}, here "
                f"{_shape(mine.get(name))} ({len(differing)} trainable parameters differ)")
        # Another setting or another machine gives a warning.
        for key, value in self.settings.items():
            if saved["settings"].get(key) != value:
                warnings.warn(
                    f"resuming with {key}={value}, but {path} was written with {saved['settings'].get(key)}",
                    stacklevel=4)
        here = machine_record()
        # States of older versions hold no record of the machine.
        there = saved.get("machine", here)
        if there != here:
            warnings.warn(
                f"the resumed run will not be bit-equal to one that was never stopped: {path} was written "
                f"with {describe(there)}, this run has {describe(here)}", stacklevel=4)

    def _load_moments(self, tensors):
        numbers = {name: number for number, name in enumerate(self.parameters())}
        moments = {}
        for label, tensor in tensors.items():
            if label.startswith("optimizer."):
                _, key, name = label.split(".", 2)
                moments.setdefault(numbers[name], {})[key] = tensor
        self.optimizer.load_state_dict(
            {"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def _fast_forward(self, n_batches, first_epoch):
        """Start the data again from the run's first epoch and skip the batches that were used."""
        if first_epoch is not None:
            self.batches.epoch = first_epoch
        self.stream, self.n_batches = endless(self.batches), n_batches
        for _ in range(n_batches):
            next(self.stream)


def machine_record():
    """What changes the last bits of a run with the same seed: the number of threads and the instruction set."""
    return {"threads": torch.get_num_threads(), "cpu_capability": torch.backends.cpu.get_cpu_capability()}


def describe(machine):
    return f"{machine['threads']} threads and CPU capability {machine['cpu_capability']}"


def check_writable(path):
    """MiniftError now, not after an hour's training, when no file can be written at `path`."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise MiniftError(f"cannot write {path}: {error.strerror}; choose another place") from error


def _shape(shape):
    return "none" if shape is None else tuple(shape)


def endless(batches):
    """The batches again and again; a new iter() is a new epoch. Raises MiniftError when an epoch is empty."""
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise MiniftError(
                "there are no batches: the dataset is empty, or it is a generator, which can be read "
                "only once (pass a list or another re-iterable)")


def move_batch(batch, device):
    """The same dict with its tensors on `device`."""
    if not isinstance(batch, dict):
        raise MiniftError(
            f"a batch must be a dict of tensors (input_ids, labels, ...); got {type(batch).__name__}")
    return {name: x.to(device, non_blocking=True) if isinstance(x, torch.Tensor) else x for name, x in batch.items()}


def random_state(device):
    """The state of torch's global generators, by name: the CPU's and the accelerator's."""
    state = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["random.cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["random.mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state, device):
    torch.set_rng_state(state["random.cpu"])
    if device.type == "cuda" and "random.cuda" in state:
        torch.cuda.set_rng_state(state["random.cuda"], device)
    if device.type == "mps" and "random.mps" in state:
        torch.mps.set_rng_state(state["random.mps"])
