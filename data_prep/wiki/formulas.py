r"""Short formulas inside sentences, as words: ``<math>x_1 \le \pi</math>`` is "x1 ≤ π".

Without them "where <math>n</math> is the number" would lose its subject. A formula that cannot be
written in a line, or would leave TeX or markup behind, gives nothing.
"""

from __future__ import annotations

import re

from data_prep.clean import word_set

LONGEST = 80
"""In characters of TeX; a longer formula is not part of the sentence."""

_SYMBOLS = dict(
    re.findall(
        r"(\S+) (\S+)",
        """
        alpha α beta β gamma γ delta δ epsilon ε varepsilon ε zeta ζ eta η theta θ iota ι kappa κ
        lambda λ mu μ nu ν xi ξ pi π rho ρ sigma σ tau τ upsilon υ phi φ varphi φ chi χ psi ψ
        omega ω Gamma Γ Delta Δ Theta Θ Lambda Λ Xi Ξ Pi Π Sigma Σ Phi Φ Psi Ψ Omega Ω
        times × cdot · le ≤ leq ≤ ge ≥ geq ≥ ne ≠ neq ≠ approx ≈ equiv ≡ sim ~ pm ± to →
        rightarrow → infty ∞ in ∈ notin ∉ sum ∑ prod ∏ int ∫ partial ∂ nabla ∇ forall ∀ exists ∃
        cup ∪ cap ∩ subset ⊂ degree ° circ ° ell ℓ hbar ħ ldots ... dots ... cdots ...
        """,
    )
)
_FUNCTIONS = word_set("log ln exp sin cos tan max min lim det dim")
_STYLES = word_set(
    """
    mathbf mathrm mathit mathcal mathbb mathfrak mathsf text textrm textit textbf operatorname
    boldsymbol displaystyle textstyle left right big Big bf rm it quad qquad mbox
    """
)
_FRACTION = re.compile(r"\\[td]?frac\s*\{([^{}]{1,20})\}\s*\{([^{}]{1,20})\}")
_ROOT = re.compile(r"\\sqrt\s*\{([^{}]{1,20})\}")
_COMMAND = re.compile(r"\\([A-Za-z]+|[,;:!> ])")
_UNWRITABLE = re.compile(r"[\\<>|&\n]")


def formula_text(tex: str) -> str:
    """Return a formula as it would be written in a line of text; "" if it cannot be."""
    if len(tex) > LONGEST:
        return ""
    if "\\" in tex:
        tex = _FRACTION.sub(r"\1/\2", tex)
        tex = _ROOT.sub(r"√\1", tex)
        tex = _COMMAND.sub(_command, tex)
    if _UNWRITABLE.search(tex):
        return ""
    for mark in "{}_~":
        tex = tex.replace(mark, "")
    return " ".join(tex.split())


def _command(match: re.Match[str]) -> str:
    name = match[1]
    if name in _STYLES or not name[0].isalpha():
        return " " if name in ("quad", "qquad", " ") else ""
    if name in _FUNCTIONS:
        return f"{name} "
    # An unknown command leaves a backslash, and the formula is then dropped.
    return _SYMBOLS.get(name, "\\")
