"""What an engine is tested with: the model, the contract, the state machine, the crash harness."""
