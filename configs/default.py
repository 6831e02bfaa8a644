"""All fields of a run, with the sizes of the authors: X-CLIP ViT-B/16, RBT3, 8 frames, 224 px, 128 products per step.

An experiment starts from this config and lists what differs. A flag changes one field: `--config.train.batch_size=64`.
Types and bounds of the fields are in `cope_jax/runs/config.py`.
"""

from ml_collections import ConfigDict

CLIPS = ("video", "live")
AUTHORS_PAIRS = (
    *(("page", "video", 1.0), ("page", "live", 1.0), ("video", "live", 1.0)),
    *((view, clip, 1.0) for view in ("page.text", "page.vision") for clip in CLIPS),
)


def get_config() -> ConfigDict:
    """Returns the default config, locked: unknown fields are errors."""
    config = ConfigDict()
    config.seed = 0  # seed of initialization, data order, crops and dropout

    config.data = data = ConfigDict()
    data.data_dir = "data"  # folder that contains the data set, `rope/`, or the data set itself; see ./run.sh build
    data.train_split = "train"  # split of training batches
    data.eval_split = "test"  # split of evaluation
    data.domains = ConfigDict({"page": "image", "video": "clip", "live": "clip"})  # of the data set, with their kinds
    data.image_size = 224  # height and width of images, pixels
    # "stretch" (SigLIP); "crop": the central square (CLIP); "zoom": stretch the central half, 0.7 of height and width,
    # for models trained from scratch on small crops, which enlarge what they show.
    data.resize = "stretch"  # images in evaluation: "stretch", "crop" or "zoom"
    data.frames = ConfigDict({"page": 1, "video": 8, "live": 8})  # frames per item in training
    data.short_clips = "repeat"  # clips with fewer frames: "repeat" frames (the authors') or "mask" the missing ones
    data.frame_choice = "random"  # training frames: "random" ones of equal segments, or their "center" (the authors')
    data.crop_scale = (0.64, 1.0)  # area of the random resized crop, as a fraction of the image
    data.flip = True  # mirror half of the training clips
    data.colour_jitter = 0.0  # strength of random brightness, contrast and saturation, 0 (off) to 1
    data.tokenizer = ""  # folder or hub name of a Hugging Face tokenizer; "" trains a WordPiece vocabulary
    data.lowercase = False  # make texts lower-case before they are split into tokens, as SigLIP 2 needs
    data.vocab_size = 8000  # size of the trained vocabulary
    data.text_length = 32  # tokens per text, including [CLS] and [SEP]
    # An item with frames and text loses its frames, or its text, with these probabilities: (("page", 0.1, 0.2), …).
    data.modality_dropout = ()  # ((domain, probability for frames, probability for text), …)
    data.text_noise = 0.0  # probability that a training text of 10 or more characters gets noise
    data.text_templates = ()  # ((domain, template), …), such as (("page", "a photo of {}"),); also used in search
    data.clean_texts = False  # use the column text_clean of the table in place of text, for items that have it
    data.max_products = 4  # products considered per item that belongs to several
    data.max_bad_fraction = 0.001  # invalid items allowed per log window, as a fraction; others replace them
    data.hard_batches = 0.0  # share of each batch, such as 0.5, drawn from products similar to its other products
    data.hard_every = 1000  # embed all training products after this many steps to find similar ones
    data.threads = 16  # reading and decoding threads per host
    data.worker_processes = 0  # processes per host that make training batches in place of the training process

    config.model = model = ConfigDict()
    # Sets both encoders, the tokenizer, the sizes of images and texts, t and β; flags of single fields take precedence.
    model.init_from = ""  # weights of CLIP, Chinese-CLIP, SigLIP or SigLIP 2: folder or hub name
    model.embedding = 128  # width of the embeddings
    model.dtype = "float32"  # dtype of the computation: "float32" or "bfloat16"; parameters are float32
    model.attention = "auto"  # "xla", "cudnn" (flash attention) or "auto": cuDNN on GPUs if it supports the shapes
    model.scan_layers = True  # compile one block and loop over it; False compiles longer and runs faster on GPUs
    # "dots": all but matrix products; "narrow": also products wider than their input, for 40% less memory than "dots"
    # and a tenth more arithmetic; "block": everything, a third more arithmetic.
    model.remat = "none"  # what to recompute in the backward pass: "none", "dots", "narrow" or "block"
    model.text_domains = ("page", "video", "live")  # domains whose texts are used; the authors' release: ("page",)
    model.head_norm = "none"  # norm of the fusion heads: "none" (the authors') or "batch", to train from scratch
    model.principal_axes = False  # rotate embeddings of the trained model so that their first values say the most

    model.vision = vision = ConfigDict()
    vision.init_from = ""  # X-CLIP, CLIP, Chinese-CLIP, SigLIP weights (folder, hub name), a run, an export; "" random
    vision.init_cut = False  # use the first layers of weights with more layers than this model
    vision.normalisation = "imagenet"  # of pixels: "imagenet" (the authors', X-CLIP), "clip" or "siglip"
    vision.stem = "patch"  # "patch" (ViT) or "conv" (convolutional network, to train from scratch)
    vision.patch_size = 16  # pixels; 4·2^(stages − 1) with a conv stem
    vision.family = "clip"  # "clip" (X-CLIP, CLIP, Chinese-CLIP) or "siglip" (SigLIP, SigLIP 2)
    vision.stem_widths = (64, 128, 256)  # conv stem: channels per stage, from fine to coarse
    vision.stem_blocks = (0, 1, 2)  # conv stem: residual blocks per stage
    vision.width = 768  # width of the tokens
    vision.depth = 12  # transformer blocks
    vision.heads = 12  # attention heads; divides width
    vision.mlp_width = 0  # width of the blocks' hidden layers; 0 is 4 times the width
    vision.pooling = "class"  # frame vector: "class" token (CLIP), "mean" of the patches, or "attention" (SigLIP)
    vision.activation = "quick_gelu"  # "quick_gelu" (CLIP), "gelu" or "gelu_tanh" (SigLIP)
    vision.across_frames = "xclip"  # messages and integration: X-CLIP's, or "gated", which start without any effect
    vision.cross_frame = True  # message tokens between the frames of a clip
    vision.integration_depth = 1  # transformer blocks over frame vectors; 0 takes their mean
    vision.integration_heads = 8  # attention heads over frames; divides output_width
    vision.output_width = 512  # width of frame and clip vectors, before fusion
    vision.broadcast_single_frame = False  # repeat a single frame at all positions (the authors'), or use the first
    vision.drop_path = 0.0  # stochastic depth of the last block; rises linearly from 0

    model.text = text = ConfigDict()
    text.init_from = ""  # BERT, CLIP, Chinese-CLIP or SigLIP weights (folder, hub name), a run, an export; "" is random
    text.init_cut = False  # use the first layers of weights with more layers than this model
    text.family = "bert"  # "bert" (and Chinese-CLIP), "clip" or "siglip"
    text.width = 768  # width of the tokens
    text.depth = 3  # transformer blocks; 3 for RBT3
    text.heads = 12  # attention heads; divides width
    text.mlp_width = 0  # width of the blocks' hidden layers; 0 is 4 times the width, as in BERT
    text.activation = "gelu"  # "gelu" (BERT), "quick_gelu" (CLIP) or "gelu_tanh" (SigLIP)
    text.output_width = 0  # width of text vectors; 0 is that of the tokens, in BERT without a projection
    text.pooling = "pooler"  # text vector: "pooler" (BERT), "class", "mean", "end" (CLIP) or "last" token (SigLIP)
    text.dropout = 0.1  # BERT: of embeddings and residual branches
    text.attention_dropout = 0.0  # of attention weights; BERT's and the authors': 0.1

    model.fusion = fusion = ConfigDict()
    # "linear" (the release's), "mean" of both unit vectors after a linear layer each, "transformer" over a query, frame
    # and word vectors, or "aligned": "mean" for encoders of one space, with layers that start as the identity.
    fusion.kind = "linear"  # "linear", "mean", "transformer" or "aligned"
    fusion.width = 256  # transformer: width of the tokens
    fusion.depth = 2  # transformer: blocks
    fusion.heads = 4  # transformer: attention heads; divides width

    config.losses = losses = ConfigDict()  # terms of the loss; weight 0 turns a term off
    # Contrastive terms are averaged over whole embeddings and their first values, which then work alone.
    losses.nested = ()  # numbers of first values, such as (16, 32, 64)
    losses.precision = "highest"  # matrix products of losses: "highest" (float32) or "bfloat16", added up in float32
    # A view is a domain, or its texts or images alone: "page", "page.text", "page.vision". Pairing a view with itself,
    # as in ("page", "page", 1.0), compares two different items of each product.
    losses.sigmoid = sigmoid = ConfigDict()  # sigmoid loss (SigLIP)
    sigmoid.weight = 1.0  # weight of the term
    sigmoid.temperature = 10.0  # initial t (learned)
    sigmoid.bias = -10.0  # initial β (learned)
    sigmoid.pairs = ()  # ((view, view, weight), …); () is all pairs of domains with weight 1
    sigmoid.within = ()  # ((view, weight), …): views whose own items are compared with each other as well
    losses.infonce = infonce = ConfigDict()  # symmetric InfoNCE (the authors')
    infonce.weight = 0.0  # weight of the term
    infonce.temperature = 0.05  # divides similarities
    infonce.smoothing = 0.1  # label smoothing
    infonce.pairs = AUTHORS_PAIRS  # as above; () is all pairs of domains
    losses.classifier = classifier = ConfigDict()  # classification of all training products: Partial FC with CosFace
    classifier.weight = 0.0  # weight of the term
    classifier.scale = 64.0  # factor on cosines
    classifier.margin = 0.4  # subtracted from the cosine of the correct product
    classifier.rate = 1.0  # fraction of classes sampled per step; less than 1 pays off above several million classes
    classifier.classes = 0  # number of training products; 0 counts them, but a dry run needs the number

    config.finetune = finetune = ConfigDict()  # how a model that starts from weights is trained
    finetune.method = "full"  # train "full": everything; "frozen": only the heads; "lora": heads and low-rank matrices
    finetune.layer_decay = 1.0  # full: factor on the rate per layer below an encoder's last one, such as 0.75; 1 is off
    finetune.rank = 16  # lora: rank of the matrices
    finetune.alpha = 16.0  # lora: their product is multiplied by alpha / rank
    finetune.targets = r"/attention/(qkv|out)$|/mlp/(up|down)$"  # lora: regex of the linear layers of the encoders
    finetune.distill = 0.0  # weight of the cosine distance to the embeddings of the initial model, against forgetting

    config.optimizer = optimizer = ConfigDict()
    optimizer.rate = 1e-3  # peak learning rate of AdamW
    # Factors on the rate by parameter path. ./run.sh train --dry_run lists the paths; each must match. 0 freezes.
    optimizer.groups = (("", 1.0),)  # ((regex, factor), …), first match wins
    optimizer.warmup_steps = 1000  # linear from 0, followed by a cosine
    optimizer.cosine_steps = 0  # step at which the cosine reaches 0, after which it rises again; 0 means train.steps
    optimizer.b1 = 0.9  # decay of the mean of gradients
    optimizer.b2 = 0.98  # decay of the mean of squared gradients
    optimizer.weight_decay = 0.05  # multiplied by the rate
    optimizer.decayed = r"/(kernel|embedding)$"  # regex of the parameters that decay: matrices, word vectors; "" is all
    optimizer.clip_norm = 5.0  # bound on the gradient norm; 0 turns clipping off
    optimizer.clipped = ""  # regex of the parameters with this bound; "" is all, "^model/" spares those of losses

    config.train = train = ConfigDict()
    train.batch_size = 128  # products per step, over all hosts
    train.microbatch = 0  # products embedded at once, over all hosts, to save memory (gradient caching); 0 = all
    train.steps = 50_000  # number of steps; the learning rate reaches 0 there; may be raised later
    train.log_every = 50  # steps per line of metrics.jsonl
    train.checkpoint_every = 1000  # steps between checkpoints; the last step is always saved
    train.keep_checkpoints = 3  # newest checkpoints kept, at least two, in addition to the best one evaluated
    train.evaluate_every = 0  # steps between evaluations on some products, plus one on all at the end; 0 = none
    train.evaluate_products = 200  # products of data.eval_split in each evaluation during training, at most
    train.best_by = "mean_r1"  # criterion of the best step: mean_r1, mean_r5, mean_r10, mean_map, average_mean_r1, …
    train.average_decay = 0.0  # decay of a moving average of the parameters, such as 0.999, also evaluated; 0 = none
    train.shard_optimizer = False  # shard the moments of AdamW over mesh.data as well (ZeRO-1), to save memory
    train.wandb = ""  # project of Weights & Biases to send curves and pictures to; "" is none
    train.max_skipped = 10  # consecutive steps whose loss or gradient may be non-finite before the run fails
    train.stall_seconds = 1800.0  # seconds without progress after which the run fails with a report; 0 = never

    config.mesh = mesh = ConfigDict()  # devices = data × fsdp × tensor; one axis may be −1: all remaining devices
    mesh.data = -1  # shards the batch, replicates the model
    mesh.fsdp = 1  # shards the batch and the parameters
    mesh.tensor = 1  # shards attention heads and hidden layers

    config.eval = evaluation = ConfigDict()
    evaluation.batch_size = 256  # items per batch, over all devices
    evaluation.frames = ConfigDict({"page": 1, "video": 8, "live": 8})  # frames per item in evaluation
    evaluation.ways = 20  # few-shot: classes per episode
    evaluation.shots = 1  # few-shot: support items per class
    evaluation.queries = 5  # few-shot: query items per class, at most
    evaluation.episodes = 100  # few-shot: number of episodes
    return config.lock()
