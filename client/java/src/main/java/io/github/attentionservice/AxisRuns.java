package io.github.attentionservice;

/**
 * A tensor seen along one axis: `outer` times, elements [begin, end) of the axis are one run of
 * bytes.
 *
 * @param outer the product of the axes before
 * @param length of the axis
 * @param inner bytes per element of the axis
 */
record AxisRuns(Tensor tensor, int axis, long outer, long length, long inner) {
  static AxisRuns of(Tensor tensor, int axis) {
    long outer = 1;
    for (int i = 0; i < axis; ++i) {
      outer *= tensor.axis(i);
    }
    long inner = tensor.dataType().bytes();
    for (int i = axis + 1; i < tensor.rank(); ++i) {
      inner *= tensor.axis(i);
    }
    return new AxisRuns(tensor, axis, outer, tensor.axis(axis), inner);
  }

  /** The bytes of all runs per element of the axis. */
  long bytesPerElement() {
    return outer * inner;
  }

  /** Where element `begin` of the axis is, in the run of this number. */
  long offset(long number, long begin) {
    return (number * length + begin) * inner;
  }

  /** The tensor's shape with `count` elements of the axis. */
  long[] shape(long count) {
    long[] shape = tensor.shape();
    shape[axis] = count;
    return shape;
  }
}
