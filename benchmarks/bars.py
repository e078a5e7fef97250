"""What a figure is held against, in words. A missed bar is printed as missed; nothing is rounded towards it."""


def at_most(value: float, bar: float, unit: str = "") -> str:
    return _said("≤", bar, unit, value <= bar)


def at_least(value: float, bar: float, unit: str = "") -> str:
    return _said("≥", bar, unit, value >= bar)


def below(value: float, bar: float, unit: str = "") -> str:
    return _said("<", bar, unit, value < bar)


def _said(sign: str, bar: float, unit: str, met: bool) -> str:
    return f"(bar {sign} {bar:.4g}{unit and ' ' + unit}: {'met' if met else 'MISSED'})"
