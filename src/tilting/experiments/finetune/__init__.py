"""`tilting finetune`: its configuration, its folder, the batches it trains on, and the function."""
