"""A model on one or two texts as a page that a browser shows without a network: attention, norms, predictions by depth.

from xlmr_core.explore import explore

page = explore(model, tokenizer, ["What are <mask> doing here?"])
page.save("page.html")  # in a notebook, `page` shows itself
"""

from xlmr_core.explore.measure import explore
from xlmr_core.explore.page import HeadOff, Likeliest, Page, TextMeasures

__all__ = ["HeadOff", "Likeliest", "Page", "TextMeasures", "explore"]
