"""Array records to batches of uint8 frames and token ids, in NumPy on the host.

records     random access to items and products of a split; errors of those that cannot be read
images      encoded images → square frames, with crop, flip and color jitter
frames      which frames of a clip are used
tokenizer   texts → token ids; trains WordPiece vocabularies
collate     items → the arrays of a domain; product ids → classes
groups      groups of similar products, for hard batches
pipeline    Grain pipelines of training batches, which depend on (seed, step) only, and of evaluation batches
thumbnails  items for HTML pages

A batch has for each domain, with M = max_products:

    "frames"      u8[B, T, H, W, 3]  RGB, H = W
    "frame_mask"  bool[B, T]         False for padding
    "text"        i32[B, L]          token ids; 0 is padding, and a missing text is all 0
    "present"     bool[B]            False if the example has no item of this domain
    "products"    i32[B, M]          ids of the products the item belongs to, padded with -1
    "classes"     i32[B, M]          their classes, if class ids are given, padded with -1

If a loss compares two items of a domain, training batches have a second item of each product, such as "page_2" next to
"page". They also have "product_id" i32[B], "bad_items" i32[B] (items that could not be read for the example), and
with class ids "product_class" i32[B]. Two examples show the same product if their "products" share an id.
"""
