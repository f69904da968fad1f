"""What a user sees of a running job: one entry of its progress, with its values as attributes."""

from __future__ import annotations

from typing import Any

from cyxwiz_tasks.protocol.updates import Update


class JobUpdate:
    """One entry of a job's progress.

    `kind` is "state" (the job moved), "progress" (it reported something) or "end" (nothing follows). What the job
    reported is in `values` and as attributes: `update.epoch`, `update.loss`. The built-in training reports epoch,
    epochs, step, total, loss, accuracy, samples_per_second, eta_seconds and more. `str()` is one line for people.
    """

    def __init__(self, update: Update) -> None:
        self.kind = update.kind
        #: Celery's name of the state
        self.state = update.state
        #: the node's name
        self.node = update.node
        self.attempt = update.attempt
        #: why this node was chosen, or why the job ended as it did
        self.message = update.message
        #: Unix time by the clock of whoever wrote it
        self.at = update.at
        self.values: dict[str, Any] = update.values

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "values":
            raise AttributeError(name)
        try:
            return self.values[name]
        except KeyError:
            known = ", ".join(self.values) or "no values"
            raise AttributeError(f"this update has no {name!r}; it has {known}") from None

    def get(self, name: str, default: Any = None) -> Any:
        """A reported value, or `default` where this update has none of that name."""
        return self.values.get(name, default)

    def __str__(self) -> str:
        if self.kind == "progress":
            return "  ".join(self._texts())
        where = f" on {self.node}" if self.node else ""
        again = f" (attempt {self.attempt})" if (self.attempt or 1) > 1 else ""
        return f"{self.state}{where}{again}" + (f": {self.message}" if self.message else "")

    def __repr__(self) -> str:
        return f"<JobUpdate {self.kind}: {self}>"

    def _texts(self) -> list[str]:
        rest = dict(self.values)
        texts = []
        if "epoch" in rest:
            texts.append(f"epoch {_text(rest.pop('epoch'))}" + _of(rest.pop("epochs", None)))
        if "step" in rest:
            texts.append(f"step {_text(rest.pop('step'))}" + _of(rest.pop("total", None)))
        speed, eta = rest.pop("samples_per_second", None), rest.pop("eta_seconds", None)
        texts += [f"{name} {_text(value)}" for name, value in rest.items()]
        if speed is not None:
            texts.append(f"{_text(speed, ',.0f')} samples/s")
        if eta is not None:
            texts.append(f"{_text(eta, '.0f')} s left")
        return texts


def _of(total: Any) -> str:
    return "" if total is None else f"/{_text(total)}"


def _text(value: Any, form: str = "") -> str:
    """What a job reports is any JSON: also "inf" where a speed was 0, or words."""
    if isinstance(value, int | float):
        return format(value, form or (".4g" if isinstance(value, float) else ""))
    return str(value)
