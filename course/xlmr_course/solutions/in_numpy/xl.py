"""What XL and XXL change: a solution in NumPy."""

ARRAYS = "numpy"


def pre_norm_layer(x, attention, feed_forward, attention_norm, feed_forward_norm):
    mid = x + attention(attention_norm(x))
    return mid + feed_forward(feed_forward_norm(mid))
