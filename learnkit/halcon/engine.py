"""HDevEngine's classes for procedures: the same functions, with inputs and outputs by name."""

from __future__ import annotations

import inspect
from typing import Any

from learnkit.halcon.errors import HError
from learnkit.halcon.operators import CALLABLES, OUTPUTS, input_names, same_name


class HDevProcedure:
    """A procedure by its name.

    Args:
        name: such as "preprocess_dl_samples".

    Raises:
        HError: there is none of this name.
    """

    def __init__(self, name: str):
        if not isinstance(name, str) or name not in CALLABLES:
            raise HError(
                f"there is no procedure {name!r} here; learnkit.halcon lists those there are"
            )
        self.name = name

    @classmethod
    def load_external(cls, name: str) -> HDevProcedure:
        """The procedure of this name; no file is read."""
        return cls(name)


class HDevProcedureCall:
    """A call of a procedure: inputs are set, `execute` runs it, outputs are asked for.

    Args:
        procedure: what to call.
    """

    def __init__(self, procedure: HDevProcedure):
        self.procedure = procedure
        self._inputs: dict[str, Any] = {}
        self._outputs: dict[str, Any] = {}

    def set_input_control_param_by_name(self, name: str, value: Any) -> None:
        """Set an input by HALCON's name, such as "DLSampleBatch", or the binding's.

        Raises:
            HError: the procedure has no such input.
        """
        known = input_names(CALLABLES[self.procedure.name])
        found = [one for one in known if same_name(one, name)]
        if not found:
            raise HError(f"{self.procedure.name} has no input {name!r}; it has {', '.join(known)}")
        self._inputs[found[0]] = value

    set_input_iconic_param_by_name = set_input_control_param_by_name

    def execute(self) -> None:
        """Run the procedure."""
        function = CALLABLES[self.procedure.name]
        try:
            # apart from the call: a TypeError of the procedure itself is no missing input
            inspect.signature(function).bind(**self._inputs)
        except TypeError as error:
            raise HError(f"{self.procedure.name} cannot be called: {error}; set it") from error
        found = function(**self._inputs)
        names = OUTPUTS[self.procedure.name]
        # a single output is returned as it is, and None where there is no output
        values = found if len(names) > 1 else (found,) * len(names)
        self._outputs = dict(zip(names, values, strict=True))

    def get_output_control_param_by_name(self, name: str) -> Any:
        """An output, after `execute`.

        Raises:
            HError: the procedure has no such output, or did not run.
        """
        found = [value for one, value in self._outputs.items() if same_name(one, name)]
        if not found:
            known = ", ".join(OUTPUTS[self.procedure.name]) or "none"
            raise HError(f"{self.procedure.name} has no output {name!r}; it has {known}")
        return found[0]

    get_output_iconic_param_by_name = get_output_control_param_by_name
