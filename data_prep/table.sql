-- Tables and queries of a catalog that is built from a table of products; data_prep/table.py fills and reads them.

CREATE TABLE rows (
    split VARCHAR, drawn BOOLEAN, domain VARCHAR, product VARCHAR, item VARCHAR, text VARCHAR, payload VARCHAR,
    line BIGINT
);
CREATE TABLE images (
    split VARCHAR, domain VARCHAR, item VARCHAR, name VARCHAR, time BIGINT, position BIGINT, line BIGINT
);
-- Products without a split that are shown with others, and the item that they are drawn with.
CREATE TABLE anchors (product VARCHAR, domain VARCHAR, item VARCHAR, split VARCHAR);
-- Ids of products and of the items of each domain. They are kept if all of a kind are whole numbers, and numbered
-- otherwise.
CREATE TABLE ids (kind VARCHAR, original VARCHAR, whole BOOLEAN, id BIGINT);

-- The rows of `anchors`. The order and the draw of items use different digits of their hashes.
CREATE MACRO draw_anchors(test_fraction) AS TABLE
WITH shared AS (
    SELECT domain, item FROM rows GROUP BY ALL HAVING count(DISTINCT product) > 1 AND bool_or(drawn)
), hashed AS (
    SELECT *, sha256(domain || ' ' || item) AS hash FROM shared
), drawn_together AS (
    SELECT product, arg_min(domain, hash) AS domain, arg_min(item, hash) AS item,
        ('0x' || right(min(hash), 16))::UBIGINT / 18446744073709551616.0 AS fraction
    FROM rows JOIN hashed USING (domain, item) WHERE drawn GROUP BY product
)
SELECT product, domain, item, CASE WHEN fraction < test_fraction THEN 'test' ELSE 'train' END FROM drawn_together;

-- Products that the table has in one split, which their rows without a split follow.
CREATE VIEW stated AS
SELECT product, min(split) AS split FROM rows WHERE NOT drawn GROUP BY product HAVING count(DISTINCT split) = 1;

-- Lines of items in a split, other than the one that keeps them.
CREATE VIEW lines_of_other_splits AS
WITH parts AS (
    SELECT domain, item, rows.split AS split, bool_or(drawn) AS drawn,
        bool_or(anchors.product IS NOT NULL) AS anchored, count(DISTINCT product) AS products
    FROM rows LEFT JOIN anchors USING (domain, item, product) GROUP BY ALL
), kept AS (
    SELECT domain, item, split FROM parts WINDOW item AS (PARTITION BY domain, item)
    QUALIFY bool_or(drawn) OVER item AND count(*) OVER item > 1
        AND row_number() OVER (PARTITION BY domain, item ORDER BY anchored DESC, products DESC, split) = 1
)
SELECT line FROM rows JOIN kept USING (domain, item) WHERE rows.split <> kept.split;

-- The product with the most items: its id and number of items, those of all products, and the median of the others.
CREATE VIEW largest_product AS
WITH counts AS (SELECT product, count(DISTINCT (domain, item)) AS items FROM rows GROUP BY ALL),
    ordered AS (SELECT *, row_number() OVER (ORDER BY items DESC, product) AS place FROM counts)
SELECT product, items, sum(items) OVER (), coalesce((SELECT median(items) FROM ordered WHERE place > 1), 0)
FROM ordered ORDER BY place LIMIT 1;

-- The rows of `ids`. Product ids are also numbered if one of them is too large, like bar codes.
CREATE MACRO number_ids(max_product_id) AS TABLE
WITH every AS (
    SELECT DISTINCT 'product' AS kind, product AS original FROM rows UNION ALL SELECT DISTINCT domain, item FROM rows
), kinds AS (
    SELECT kind, bool_and(
        regexp_full_match(original, '0|[1-9][0-9]{0,17}')
        AND (kind <> 'product' OR TRY_CAST(original AS BIGINT) <= max_product_id)
    ) AS whole FROM every GROUP BY kind
)
SELECT kind, original, whole,
    CASE WHEN whole THEN TRY_CAST(original AS BIGINT)
    ELSE row_number() OVER (PARTITION BY kind ORDER BY original) - 1 END
FROM every JOIN kinds USING (kind);

-- Domains, and whether some item has several images or a clip of a video.
CREATE VIEW domains AS
SELECT domain, coalesce(max(count), 0) > 1 OR coalesce(bool_or(has_clip), false)
FROM (SELECT DISTINCT domain FROM rows)
LEFT JOIN (
    SELECT domain, count(DISTINCT name) AS count, bool_or(regexp_matches(name, '#t=[0-9.,]+$')) AS has_clip
    FROM images GROUP BY domain, item
) USING (domain)
GROUP BY domain;

-- Sources of a split and domain, see `split_writer.RowSource`.
CREATE MACRO pairs(of_split, of_domain) AS TABLE
SELECT products.id AS product_id, items.id AS item_id, min(line) AS line FROM rows
JOIN ids AS products ON products.kind = 'product' AND products.original = product
JOIN ids AS items ON items.kind = domain AND items.original = item
WHERE split = of_split AND domain = of_domain GROUP BY ALL;

CREATE MACRO texts(of_split, of_domain) AS TABLE
SELECT id AS item_id, text, min(line) AS line FROM rows JOIN ids ON kind = domain AND original = item
WHERE split = of_split AND domain = of_domain AND text <> '' GROUP BY ALL;

-- An image named by several rows counts once. Without times, images keep the order of the table.
CREATE MACRO frames(of_split, of_domain) AS TABLE
SELECT id AS item_id, name, line, position,
    coalesce(time, row_number() OVER (PARTITION BY id ORDER BY line, position) - 1) AS time
FROM (
    SELECT domain, item, name, time, min(line) AS line, arg_min(position, (line, position)) AS position
    FROM images WHERE split = of_split AND domain = of_domain GROUP BY ALL
) JOIN ids ON kind = domain AND original = item;

-- An item has the columns of its first row that has any, and otherwise those of its product, except its text and
-- its video; null deletes a key.
CREATE MACRO payloads(of_split, of_domain) AS TABLE
WITH shared AS (
    SELECT product, arg_min(payload, line) AS payload FROM rows WHERE payload <> '' GROUP BY product
)
SELECT items.id AS item_id, min(line) AS line, json_merge_patch(
    coalesce(arg_min(shared.payload, line), '{}'),
    '{"text_clean": null, "video": null, "start": null, "end": null}',
    coalesce(arg_min(rows.payload, line) FILTER (rows.payload <> ''), '{}'),
    json_object(
        'item', CASE WHEN NOT bool_and(items.whole) THEN any_value(item) END,
        'product', CASE WHEN NOT bool_and(products.whole) THEN list(DISTINCT product ORDER BY product) END
    )
)::VARCHAR AS text
FROM rows LEFT JOIN shared USING (product)
JOIN ids AS products ON products.kind = 'product' AND products.original = product
JOIN ids AS items ON items.kind = domain AND items.original = item
WHERE split = of_split AND domain = of_domain GROUP BY items.id;
