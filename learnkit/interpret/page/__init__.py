"""The evaluation page's numbers and pictures: what `report/page` draws, as one dictionary."""
