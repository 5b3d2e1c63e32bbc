"""The policy room: what each grade means, as words a judge reads and rules that code applies.

Light: imports no torch, ray, vllm or transformers.
"""

from preceptor.policy.describe import show
from preceptor.policy.diff import Change, PolicyDiff, diff
from preceptor.policy.diff_text import diff_json, diff_text
from preceptor.policy.document import Policy, load_policy
from preceptor.policy.findings import Finding, format_findings
from preceptor.policy.golden import golden_files, load_golden
from preceptor.policy.lint import lint
from preceptor.policy.precedents import Precedent
from preceptor.policy.prompts import ANSWER, REASONED_ANSWER, UNASKED, messages, prompt_hash, reasoned_messages
from preceptor.policy.revision import policy_at
from preceptor.policy.rubric import Cap, Dimension, Rubric
from preceptor.policy.stale import Staleness, staleness

__all__ = [
    "ANSWER",
    "REASONED_ANSWER",
    "UNASKED",
    "Cap",
    "Change",
    "Dimension",
    "Finding",
    "Policy",
    "PolicyDiff",
    "Precedent",
    "Rubric",
    "Staleness",
    "diff",
    "diff_json",
    "diff_text",
    "format_findings",
    "golden_files",
    "lint",
    "load_golden",
    "load_policy",
    "messages",
    "policy_at",
    "prompt_hash",
    "reasoned_messages",
    "show",
    "staleness",
]
