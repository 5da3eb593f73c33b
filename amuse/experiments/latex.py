"""Text for LaTeX."""

_LATEX = str.maketrans(
    {c: rf"\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"α": r"$\alpha$", "γ": r"$\gamma$", "±": r"$\pm$"}
)


def latex_text(text: str) -> str:
    """Text with the characters that LaTeX reads as commands escaped."""
    return text.translate(_LATEX)
