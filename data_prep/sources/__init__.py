"""Public data sets turned into releases.

grocery  GroceryStoreDataset: photos of groceries in shops
"""
