import PictureSelection
import Testing

@Suite struct PictureSelectionTests {}
