"""How tests train: few images, few steps, and one run that all who only read it share (`run`, in conftest.py)."""

MODEL = "cloformer_xxs"
FAST = "vit_nano_patch4_32"  # for what any network shows: it has a quarter of the layers
QUICK = dict(
    model=FAST,
    img_size=32,
    crop_pct=1.0,
    epochs=2,
    batch_size=16,
    warmup_epochs=1,
    workers=0,
    hflip=0.0,
    scale=(0.8, 1.0),
)

# Enough steps for every seed: with half as many, BatchNorm's statistics lag behind the weights of some.
ENOUGH = {"model": MODEL, "epochs": 6, "batch_size": 8, "smoothing": 0.0, "seed": 1}
