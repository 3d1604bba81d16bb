"""A small model in a folder, as a hub has it, and a short run of it."""

import torch

from orpo_exp.models.scratch import bytes_tokenizer

RUN = [
    "model=hf", "model.path=base", "data=json", "data.path=pairs.jsonl", "data.eval_size=3", "tracker=[]",
    "train.global_batch_size=8", "train.micro_batch_size=4", "train.max_steps=4", "train.eval_every=2",
    "train.samples=1", "train.sample_tokens=3", "scheduler=constant", "optimizer.lr=1e-2",
]  # fmt: skip


def llama(seed=0, **more):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return LlamaForCausalLM(
        LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=264, initializer_range=0.1, **ids, **more)
    )


def save_llama(folder):
    """A folder with a model, as a hub has it."""
    llama().save_pretrained(folder)
    bytes_tokenizer().save_pretrained(folder)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(20)[None]).logits
