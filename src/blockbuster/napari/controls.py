"""What the boxes of the form are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFormLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QSizePolicy,
    QSpinBox,
    QWidget,
)

from blockbuster.napari.choices import Choice, Parameter

__all__ = ["Box", "ParameterForm", "button", "combo", "line", "note", "row"]


class Box(QGroupBox):
    """Controls under a title, one below the other.

    Attributes
    ----------
    changed : Signal
        Some value is another.
    """

    changed = Signal()

    def __init__(self, title: str) -> None:
        super().__init__(title)
        self.rows = _form_layout(self)

    def add(self, words: str, control: Any, tip: str = "") -> Any:
        """A control with its name before it; returns the control."""
        control.setToolTip(tip)
        self.rows.addRow(words, control)
        return control

    def show_row(self, control: Any, shown: bool) -> None:
        """Show or hide a control with its name."""
        name = self.rows.labelForField(control)
        for part in (name, control):
            if part is not None:
                part.setVisible(shown)


def _form_layout(parent: Any) -> Any:
    layout = QFormLayout(parent)
    layout.setContentsMargins(8, 6, 8, 6)
    layout.setVerticalSpacing(4)
    layout.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
    return layout


def combo(choices: Sequence[tuple[str, Any]] = ()) -> Any:
    """A list to choose from; words, and the values behind them."""
    made = QComboBox()
    # Long names must not make the form wider than the dock.
    made.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    made.setMinimumContentsLength(8)
    made.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    for words, value in choices:
        made.addItem(words, value)
    return made


def line(placeholder: str = "") -> Any:
    """A line to type in."""
    made = QLineEdit()
    made.setPlaceholderText(placeholder)
    return made


def note() -> Any:
    """A sentence below a control."""
    made = QLabel()
    made.setWordWrap(True)
    made.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    made.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
    return made


def row(*parts: Any) -> Any:
    """Controls beside each other, the first as wide as there is room."""
    made = QWidget()
    layout = QHBoxLayout(made)
    layout.setContentsMargins(0, 0, 0, 0)
    for part in parts:
        layout.addWidget(part, stretch=int(part is parts[0]))
    return made


def button(words: str, tip: str, clicked: Callable[[], None]) -> Any:
    """A button."""
    made = QPushButton(words)
    made.setToolTip(tip)
    made.clicked.connect(lambda _checked: clicked())
    return made


class ParameterForm(QWidget):
    """The parameters of a choice.

    Attributes
    ----------
    controls : dict
        By the name of the parameter.
    """

    changed = Signal()

    def __init__(self, choice: Choice) -> None:
        super().__init__()
        self._parameters = choice.parameters
        layout = _form_layout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self.controls: dict[str, Any] = {}
        for parameter in choice.parameters:
            control = _MAKERS[parameter.kind](parameter, self.changed.emit)
            control.setToolTip(parameter.tip)
            self.controls[parameter.name] = control
            layout.addRow(parameter.name.replace("_", " "), control)

    def values(self) -> dict[str, Any]:
        """What is set, by name."""
        return {parameter.name: _value(parameter, self.controls[parameter.name]) for parameter in self._parameters}


def _int_control(parameter: Parameter, changed: Callable[[], None]) -> Any:
    made = QSpinBox()
    made.setRange(int(parameter.low), int(parameter.high))
    return _number_control(made, parameter, changed)


def _float_control(parameter: Parameter, changed: Callable[[], None]) -> Any:
    made = QDoubleSpinBox()
    made.setDecimals(3)
    made.setRange(parameter.low, parameter.high)
    return _number_control(made, parameter, changed)


def _number_control(made: Any, parameter: Parameter, changed: Callable[[], None]) -> Any:
    if parameter.default is None:
        made.setSpecialValueText(parameter.automatic)
    made.setValue(parameter.low if parameter.default is None else parameter.default)
    made.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    # The range is no reason to be wide.
    made.setMinimumWidth(80)
    made.valueChanged.connect(lambda _value: changed())
    return made


def _bool_control(parameter: Parameter, changed: Callable[[], None]) -> Any:
    made = QCheckBox()
    made.setChecked(parameter.default)
    made.toggled.connect(lambda _checked: changed())
    return made


def _text_control(parameter: Parameter, changed: Callable[[], None]) -> Any:
    made = line("module:name" if parameter.kind == "function" else "")
    made.setText(parameter.default)
    made.textChanged.connect(lambda _text: changed())
    return made


def _choice_control(parameter: Parameter, changed: Callable[[], None]) -> Any:
    made = combo(parameter.values)
    made.setCurrentIndex(made.findData(parameter.default))
    made.currentIndexChanged.connect(lambda _index: changed())
    return made


_MAKERS: dict[str, Callable[[Parameter, Callable[[], None]], Any]] = {
    "int": _int_control,
    "float": _float_control,
    "bool": _bool_control,
    "text": _text_control,
    "choice": _choice_control,
    "function": _text_control,
}


def _value(parameter: Parameter, control: Any) -> Any:
    if parameter.kind in ("int", "float"):
        is_automatic = parameter.default is None and control.value() == control.minimum()
        return None if is_automatic else control.value()
    if parameter.kind == "bool":
        return control.isChecked()
    return control.currentData() if parameter.kind == "choice" else control.text().strip()
