"""The only place that changes a network: takes a program and a plan, returns a changed copy, proven."""
