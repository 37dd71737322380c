"""LoRAPlex: train many LoRA adapters on one frozen base model, and know beforehand how that will go."""
