"""A run that can be stopped and resumed: progress bar, Ctrl-C, history, and the state on the disk.

`train` and PPO's loop both go through `for step in run`, and call `run.record(row)` at the end of each step.
"""

import contextlib
import json
import signal
import sys
import threading
import warnings

from minift.core.files import write_text
from minift.core.resume import check_writable

with warnings.catch_warnings():
    # In a notebook without ipywidgets, tqdm.auto warns and then takes the plain bar.
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm


class Run:
    """The steps from state.step to `steps`. Use it as a context manager, and iterate over it inside the block.

    state: a TrainingState. state_path: its file, written every `save_every` steps (0: never), after the last step and
    at Ctrl-C; resume=True goes on from that file. metrics_path: a file of JSON lines, one more for each step.
    name: the label of the progress bar. unit: what a step is called in messages.
    """

    def __init__(
            self, state, steps, *, name, unit="step", state_path=None, save_every=0, resume=False,
            metrics_path=None, progress=True):
        self.state, self.steps, self.unit = state, steps, unit
        self.state_path, self.save_every, self.metrics_path = state_path, save_every, metrics_path
        if resume:
            state.load(state_path)
        if state_path is not None:
            check_writable(state_path)
        if metrics_path is not None:
            # Rows that were written after the last save are dropped: those steps are taken again.
            rows = [json.dumps(row) + "\n" for row in state.history]
            write_text(metrics_path, "".join(rows))
        self.bar = tqdm(
            total=steps, initial=state.step, desc=name, disable=not progress, mininterval=0.5)
        self.ctrl_c = CtrlC()

    def __enter__(self):
        self.ctrl_c.__enter__()
        return self

    def __exit__(self, *error):
        self.bar.close()
        self.ctrl_c.__exit__(*error)

    def __iter__(self):
        """The numbers of the steps, from 1; after Ctrl-C the step is finished and KeyboardInterrupt is raised."""
        while self.state.step < self.steps:
            yield self.state.step + 1
            if self.stopping:
                raise KeyboardInterrupt(
                    f"stopped after {self.unit} {self.state.step} of {self.steps}")

    def is_due(self, step, every):
        """Whether something that happens every `every` steps (0: never) and after the last step happens now."""
        return step == self.steps or (every > 0 and step % every == 0)

    def record(self, row, **shown):
        """Finish a step: add its row to the history, save the state when that is due, and show `shown` on the bar."""
        self.state.history.append(row)
        self.state.step += 1
        if self.metrics_path is not None:
            with open(self.metrics_path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        self.stopping = self.ctrl_c.asked
        if self.state_path and (self.stopping or self.is_due(self.state.step, self.save_every)):
            self.state.save(self.state_path)
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()


class CtrlC:
    """Inside the block, the first Ctrl-C only sets `.asked`, so that the step is finished; the second stops at once."""

    def __enter__(self):
        self.asked = False
        # Other threads may not set signal handlers.
        self.in_main_thread = threading.current_thread() is threading.main_thread()
        if self.in_main_thread:
            self.previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, signal_number, frame):
        if self.asked:
            raise KeyboardInterrupt("stopped at once by a second Ctrl-C")
        self.asked = True
        # stderr may be in the middle of another write.
        with contextlib.suppress(RuntimeError):
            print("\nCtrl-C: stopping after this step; press it again to stop at once", file=sys.stderr)

    def __exit__(self, kind, error, traceback):
        if self.in_main_thread:
            signal.signal(signal.SIGINT, self.previous or signal.default_int_handler)
        if self.asked and kind is None:
            raise KeyboardInterrupt("stopped after the last step")
