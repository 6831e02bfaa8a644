"""Every field of a run, at the authors' sizes (X-CLIP ViT-B/16, RBT3, 8 frames, 224 px, 128 products a step).

An experiment imports this file and states what differs; a flag changes one field: `--config.train.batch_size=64`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The default run, locked: a key that is not here is an error."""
    config = ConfigDict()
    config.seed = 0  # of initialisation, data order, crops and dropout

    config.data = data = ConfigDict()
    data.data_dir = "data"  # folder that holds `rope/`, as ./run.sh build wrote it
    data.train_split = "train"  # split of the training batches
    data.eval_split = "test"  # split that evaluation embeds
    data.image_size = 224  # side of the square input, pixels
    data.frames = ConfigDict({"page": 1, "video": 8, "live": 8})  # frames chosen from each item in training
    data.short_clips = "repeat"  # clips with fewer frames: "repeat" them (the authors') or "mask" the rest
    data.crop_scale = (0.64, 1.0)  # area of the random resized crop, fractions of the image
    data.flip = True  # mirror half of the training clips
    data.colour_jitter = 0.0  # strength of random brightness, contrast and saturation, 0 (off) to 1
    data.tokenizer = ""  # folder or hub name of a Hugging Face tokenizer; "" trains a WordPiece vocabulary
    data.vocab_size = 8000  # of the trained vocabulary
    data.text_length = 32  # tokens, [CLS] and [SEP] included
    data.text_noise = 0.0  # probability that a training text of 10 or more characters is noised
    data.max_products = 4  # products of one item that are looked at, for items in several
    data.max_bad_fraction = 0.001  # of the items of a log window that may be unreadable; others stand for them
    data.threads = 16  # reading and decoding threads a host

    config.model = model = ConfigDict()
    model.embedding = 128  # width of the shared space
    model.dtype = "float32"  # of the computation: "float32" or "bfloat16"; parameters stay float32
    model.attention = "auto"  # "xla", "cudnn" (flash attention) or "auto": cuDNN on a GPU where it fits
    model.scan_layers = True  # one compiled block in a loop; False compiles longer, may run a little faster
    model.remat = "none"  # recomputed for gradients: "none", "block" (all in it) or "dots" (but no products)
    model.text_domains = ("page", "video", "live")  # whose texts are used; the authors' release: ("page",)
    model.head_norm = "none"  # of the fusion heads: "none" (the authors') or "batch", to train from scratch

    model.vision = vision = ConfigDict()
    vision.init_from = ""  # folder or hub repository of X-CLIP, CLIP or Chinese-CLIP weights; "" starts fresh
    vision.init_cut = False  # whether to take the first layers of a source that is deeper than this model
    vision.normalisation = "imagenet"  # of pixels: "imagenet" (the authors, X-CLIP) or "clip" (CLIP, Chinese-CLIP)
    vision.stem = "patch"  # "patch" (ViT) or "conv" (convolutional network, to train from scratch)
    vision.patch_size = 16  # pixels; of a conv stem 4·2^(stages − 1)
    vision.stem_widths = (64, 128, 256)  # conv stem: channels of its stages, fine to coarse
    vision.stem_blocks = (0, 1, 2)  # conv stem: residual blocks of its stages
    vision.width = 768  # of the tokens
    vision.depth = 12  # transformer blocks
    vision.heads = 12  # of attention; divides width
    vision.pooling = "class"  # a frame's vector: "class" token (CLIP) or "mean" of its patches
    vision.activation = "quick_gelu"  # "quick_gelu" (CLIP) or "gelu"
    vision.cross_frame = True  # message tokens between the frames of a clip
    vision.integration_depth = 1  # transformer blocks over frame embeddings; 0 = their mean
    vision.integration_heads = 8  # of attention over frames; divides output_width
    vision.output_width = 512  # of frame and clip vectors, before fusion
    vision.drop_path = 0.0  # stochastic depth of the last block, rising from 0

    model.text = text = ConfigDict()
    text.init_from = ""  # folder or hub repository of BERT or Chinese-CLIP weights; "" starts fresh
    text.init_cut = False  # whether to take the first layers of a source that is deeper than this model
    text.width = 768  # of the tokens
    text.depth = 3  # transformer blocks; 3 is RBT3
    text.heads = 12  # of attention; divides width
    text.pooling = "pooler"  # "pooler" (BERT's), "class" or "mean"
    text.dropout = 0.1  # on embeddings and residual branches

    model.fusion = fusion = ConfigDict()
    fusion.kind = "linear"  # "linear" (the release's) or "transformer" over a query, frame and word vectors
    fusion.width = 256  # of the transformer's tokens
    fusion.depth = 2  # its blocks
    fusion.heads = 4  # of its attention; divides width

    config.losses = losses = ConfigDict()  # terms of the loss; a weight of 0 leaves one out
    losses.sigmoid = sigmoid = ConfigDict()  # SigLIP's, over the three pairs of domains
    sigmoid.weight = 1.0  # of the term in the loss
    sigmoid.temperature = 10.0  # t at the start (learnable)
    sigmoid.bias = -10.0  # β at the start (learnable)
    sigmoid.page_text = 0.0  # weight of the further pairs of pages' texts alone with videos and lives
    sigmoid.page_vision = 0.0  # the same of pages' images alone
    losses.infonce = infonce = ConfigDict()  # the authors', symmetric
    infonce.weight = 0.0  # of the term in the loss
    infonce.temperature = 0.05  # divides similarities
    infonce.smoothing = 0.1  # of labels
    infonce.page_text = 1.0  # weight of the further pairs of pages' texts alone, as above
    infonce.page_vision = 1.0  # the same of pages' images alone
    losses.classifier = classifier = ConfigDict()  # the authors', of all training products: Partial FC with CosFace
    classifier.weight = 0.0  # of the term in the loss
    classifier.scale = 64.0  # of cosines
    classifier.margin = 0.4  # taken off the right product's cosine
    classifier.rate = 1.0  # share of the classes that are compared in a step; sampling pays above some millions
    classifier.classes = 0  # training products; 0 counts them, a dry run has to be told

    config.optimizer = optimizer = ConfigDict()
    optimizer.rate = 1e-3  # peak learning rate of AdamW
    # Factors on the rate by parameter path, as ./run.sh train --dry_run lists them; each must match one, 0 freezes.
    optimizer.groups = (("", 1.0),)  # ((regex, factor), …), first match wins
    optimizer.warmup_steps = 1000  # linear from 0; then a cosine to 0 at train.steps
    optimizer.b1 = 0.9  # decay of the mean of gradients
    optimizer.b2 = 0.98  # decay of the mean of their squares
    optimizer.weight_decay = 0.05  # of matrices; biases, norms, positions and loss scalars have none
    optimizer.clip_norm = 5.0  # of the global gradient; 0 = no clipping

    config.train = train = ConfigDict()
    train.batch_size = 128  # products a step, over all hosts
    train.microbatch = 0  # products embedded at once, over all hosts, where memory is short; 0 = all (gradient caching)
    train.steps = 50_000  # batches; also where the learning rate reaches 0
    train.log_every = 50  # steps a line of metrics.jsonl averages over
    train.checkpoint_every = 1000  # steps; the last step is always saved
    train.keep_checkpoints = 3  # newest ones kept, and beside them the best one of those evaluated
    train.evaluate_every = 0  # steps between evaluations on some products; at the end on all of them; 0 = none
    train.evaluate_products = 200  # of data.eval_split that the evaluations in between look at, at most
    train.best_by = "mean_r1"  # of the evaluations in between: mean_r1, mean_r5, mean_r10, mean_map; average_mean_r1, …
    train.average_decay = 0.0  # of a moving average of the parameters, evaluated beside them, say 0.999; 0 = none
    train.max_skipped = 10  # steps in a row whose loss or gradient is not finite, and that are skipped, before it ends
    train.stall_seconds = 1800.0  # without anything done, after which the run ends and tells why; 0 = never

    config.mesh = mesh = ConfigDict()  # devices = data × fsdp × tensor; −1 (one of them) takes what is left
    mesh.data = -1  # copies of the model, each with its share of the batch
    mesh.fsdp = 1  # parameters cut, batch cut
    mesh.tensor = 1  # heads and hidden layers cut

    config.eval = evaluation = ConfigDict()
    evaluation.batch_size = 256  # items embedded at once, over all devices
    evaluation.frames = ConfigDict({"page": 1, "video": 8, "live": 8})  # frames chosen from each item
    evaluation.ways = 20  # few-shot: classes of an episode
    evaluation.shots = 1  # few-shot: support items of a class
    evaluation.queries = 5  # few-shot: query items of a class, at most
    evaluation.episodes = 100  # few-shot: episodes averaged over
    return config.lock()
