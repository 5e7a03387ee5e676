"""What a network is: capture, normal form, op table, invariants, cost, save and load. Alone in knowing torch.export."""
