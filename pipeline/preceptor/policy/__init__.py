"""The policy room: what each grade means, as words a judge reads and rules that code applies.

Light: imports no torch, ray, vllm or transformers.
"""

from preceptor.policy.describe import show
from preceptor.policy.document import Policy, load_policy
from preceptor.policy.findings import Finding, format_findings
from preceptor.policy.golden import load_golden
from preceptor.policy.lint import lint
from preceptor.policy.precedents import Precedent
from preceptor.policy.prompts import ANSWER, REASONED_ANSWER, messages, prompt_hash, reasoned_messages
from preceptor.policy.rubric import Cap, Dimension, Rubric

__all__ = [
    "ANSWER",
    "REASONED_ANSWER",
    "Cap",
    "Dimension",
    "Finding",
    "Policy",
    "Precedent",
    "Rubric",
    "format_findings",
    "lint",
    "load_golden",
    "load_policy",
    "messages",
    "prompt_hash",
    "reasoned_messages",
    "show",
]
