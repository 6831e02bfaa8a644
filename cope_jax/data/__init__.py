"""From TFDS array records to batches of uint8 frames and token ids, in numpy on the host; no device is used.

records    opens the four data sets of a split: rope/page, rope/video, rope/live, rope/product
frames     which frames of a clip are taken
images     encoded bytes → square uint8 frames: decoding, crop, flip, colour jitter
tokenizer  text → token ids; WordPiece vocabularies trained from the records
classes    product ids → classes of the product classifier
leaf       items of one domain → that domain's arrays
faults     records and images that could not be read
pipeline   the Grain chains: training batches that depend on (seed, step) alone, evaluation batches

A batch has a *leaf* for each domain, with M = max_products:

    "frames"      u8[B, T, H, W, 3]  RGB, H = W
    "frame_mask"  bool[B, T]         False where a place holds no frame
    "text"        i32[B, L]          token ids, 0 is padding and a missing text all 0
    "present"     bool[B]            False where the example has no item of this domain
    "products"    i32[B, M]          ids of the products the item belongs to, filled up with -1

Training batches also have "product_id" i32[B], and "bad_items" i32[B], the items that could not be read for an example,
for which others of the same product stand. With the product classifier, they
also have "product_class" i32[B] and in each leaf "classes" i32[B, M].
What is missing is 0 (-1 in products) and masked. Two examples show the same product where their lists meet.
"""
