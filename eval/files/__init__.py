"""Result files that nobody here wrote -> one value an item, as a comparison reads them."""
