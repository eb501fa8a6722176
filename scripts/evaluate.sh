#!/bin/sh
# evaluate.sh BIN OUT [MORE...]: trains three hypernetworks and a fine-tuned LoRA for tiny-sprint,
# and compares them with other ways to spend compute. MORE is passed to `hypernoise evaluate`. If it
# is interrupted, run it again: it continues where it stopped.
set -eu
bin=$1 out=$2
shift 2
runs=$out/train

train() { # FOLDER OPTION...
    folder=$runs/$1
    shift
    "$bin/hypernoise" train --save_dir "$folder" --resume --keep_last 1000 --log_every 0 \
        --tracker none "$@"
}
stage() { # FOLDER UPDATE: the adapter after that update
    printf '%s/%s/checkpoints/step_%09d.safetensors' "$runs" "$1" "$2"
}

for seed in 0 1 2; do
    train "seed_$seed" --config tiny-sprint --seed "$seed" --save_every 100
done
train finetune --config tiny-finetune

set -- --lora "$runs/finetune/lora.safetensors" "$@"
set -- --adapter "$runs"/seed_*/hypernoise.safetensors "$@"
ablation=
for step in 100 200 400 800; do
    ablation="$ablation updates_$step=$(stage seed_0 $step)"
done
for step in 60 120 200 300 400; do
    ablation="$ablation finetune_$step=$(stage finetune $step)"
done
for rank in 1 2 4 8; do
    file=$runs/rank_$rank.safetensors
    "$bin/hypernoise" export "$runs/seed_0/hypernoise.safetensors" "$file" --rank "$rank"
    ablation="$ablation rank_$rank=$file"
done
ablation="$ablation rank_16=$runs/seed_0/hypernoise.safetensors"
# One process with one thread per core; the documented time is for two cores.
# shellcheck disable=SC2086  # none of its paths contains a space
OMP_NUM_THREADS=1 "$bin/torchrun" --standalone --nproc_per_node 2 -m hypernoise.training.cli \
    evaluate --config evaluation-tiny --out "$out" --ablation $ablation "$@"
