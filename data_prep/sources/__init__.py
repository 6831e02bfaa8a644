"""Public data sets turned into releases or catalogs.

abo             Amazon Berkeley Objects: product pages, turntable sequences and other photos
download_files  files of a download, unpacked or in tar files
grocery         GroceryStoreDataset: photos of groceries in shops
table_source    shared by the sources that write a table first
"""
