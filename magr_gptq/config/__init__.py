"""What `magr=` means: the settings that a user gives, and the plan for one layer that they resolve to."""

from magr_gptq.config.plan import Candidate, Derived, Linear, Penalty, Plan
from magr_gptq.config.settings import MagRConfig

__all__ = ["Candidate", "Derived", "Linear", "MagRConfig", "Penalty", "Plan"]
