import PyramidDrop
import Testing

@Suite struct PyramidDropTests {}
