"""A custom training loop: model, loader, LAMB, save.

python examples/own_loop.py DATA OUT [STEPS]      (DATA: what bertds prep wrote)
"""

import sys

import torch

import bertds


def main(data: str, out: str, steps: int = 100) -> None:
    """Train a small BERT on one process and write it as a Hugging Face folder."""
    torch.manual_seed(42)
    rows = bertds.DataConfig(path=data, sequence_length=128)
    source = bertds.open_source(rows, seed=42, split="train")
    plan = bertds.BatchPlan(global_batch_size=32, micro_batch_size=16, world_size=1)
    config = bertds.ModelConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
    )
    model = bertds.BertForPreTraining(config, source.tokenizer.vocab_size)
    optimizer = bertds.Lamb.for_model(model, lr=2e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=steps)
    with bertds.BatchLoader(source, rows, plan, rank=0, seed=42) as loader:
        for step, batch in zip(range(1, steps + 1), loader):
            optimizer.zero_grad()
            total = 0.0
            for micro_batch in batch.micro_batches:
                output = model(micro_batch)  # sums: divided by the counts of the whole batch
                loss = output.mlm_loss_sum / batch.masked_tokens + output.nsp_loss_sum / 32
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 10 == 0 or step == steps:
                print(f"step {step}: loss {total:.4f}")
    print("wrote", bertds.save_pretrained(model, out, source.tokenizer))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:4]))
