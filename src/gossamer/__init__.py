"""Makes trained PyTorch networks small and fast, and proves it."""

from gossamer.errors import GossamerError as GossamerError
from gossamer.plan.budget import Budget as Budget
from gossamer.plan.plan import Plan as Plan
from gossamer.program.bundle import load as load
from gossamer.program.bundle import save as save
from gossamer.program.capture import capture as capture
from gossamer.program.program import Program as Program
