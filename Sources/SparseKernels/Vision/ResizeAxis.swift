internal import KernelInterface

/// The taps of one axis: which cells make a cell of the other extent, and with which weights.
///
/// Places are computed in single precision, with one rounding per step, because that is how PyTorch places them: at thousands of
/// cells the rounding moves a place by 10⁻⁴ of a cell. What follows from a place is computed in double precision and rounded once.
struct ResizeAxis: Sendable {
    /// The most cells of an axis: `Float` numbers no more of them.
    static let limit = 1 << 24

    let source: Int
    let target: Int
    /// Whether every cell is itself, with weight 1.
    let isCopy: Bool
    /// The most taps of a cell.
    let largestCount: Int
    private let first: Tensor<Int32>
    private let counts: Tensor<Int32>
    private let offsets: Tensor<Int32>
    private let weights: Tensor<Float>

    /// - Throws: `.invalidShape` that names an extent beyond the limit.
    init(
        from source: Int, to target: Int, filter: ImageResize.Filter, antialias: Bool
    ) throws(SparseKernelsError) {
        for (name, extent) in [("source", source), ("target", target)] {
            try require(
                extent <= Self.limit, .invalidShape, name, expected: "at most \(Self.limit) cells along an axis",
                actual: "\(extent)")
        }
        self.source = source
        self.target = target
        isCopy = source == target
        var first: [Int32] = []
        var counts: [Int32] = []
        var offsets: [Int32] = []
        var weights: [Float] = []
        first.reserveCapacity(target)
        counts.reserveCapacity(target)
        offsets.reserveCapacity(target)
        var window = Window(source: source, target: target, filter: filter, antialias: antialias)
        var largest = 1
        for place in 0..<target {
            if isCopy { window.set(first: place, weights: [1]) } else { window.move(to: place) }
            first.append(Int32(window.first))
            counts.append(Int32(window.weights.count))
            offsets.append(Int32(weights.count))
            largest = max(largest, window.weights.count)
            for weight in window.weights { weights.append(Float(weight)) }
        }
        largestCount = largest
        self.first = try Tensor([target], first)
        self.counts = try Tensor([target], counts)
        self.offsets = try Tensor([target], offsets)
        self.weights = try Tensor([weights.count], weights)
    }

    /// The addresses for kernels. They are memory of the axis, which its owner keeps.
    var taps: ResizeTaps {
        func address<Element>(_ tensor: Tensor<Element>) -> UnsafePointer<Element> {
            UnsafePointer(tensor.storage.pointer.assumingMemoryBound(to: Element.self))
        }
        return ResizeTaps(
            first: address(first), count: address(counts), offset: address(offsets), weights: address(weights))
    }

    /// The most source cells that `length` adjacent target cells, from a multiple of `length` on, read together.
    func widestStretch(_ length: Int) -> Int {
        if isCopy { return min(length, target) }
        let (first, counts) = (first.span, counts.span)
        var widest = 1
        for start in stride(from: 0, to: target, by: length) {
            let last = min(target, start + length) - 1
            widest = max(widest, Int(first[last]) + Int(counts[last]) - Int(first[start]))
        }
        return widest
    }
}

/// The taps of one cell after the other.
private struct Window {
    let source: Int
    let target: Int
    let filter: ImageResize.Filter
    let antialias: Bool
    /// Source cells per target cell.
    let scale: Float
    private(set) var first = 0
    private(set) var weights: [Double] = []

    init(source: Int, target: Int, filter: ImageResize.Filter, antialias: Bool) {
        self.source = source
        self.target = target
        self.filter = filter
        self.antialias = antialias
        scale = Float(source) / Float(target)
    }

    mutating func set(first: Int, weights: [Double]) {
        self.first = first
        self.weights = weights
    }

    mutating func move(to place: Int) {
        weights.removeAll(keepingCapacity: true)
        switch filter {
        case .nearest:
            first = min(source - 1, Int(Float(place) * scale))
            weights.append(1)
        case .area:
            // Both products are below 2⁴⁸.
            first = place * source / target
            let end = ((place + 1) * source + target - 1) / target
            for _ in first..<end { weights.append(1 / Double(end - first)) }
        case .bilinear: antialias ? smooth(place, reach: 1) : interpolate(place, reach: 1)
        case .bicubic: antialias ? smooth(place, reach: 2) : interpolate(place, reach: 2)
        }
    }

    /// 2·`reach` taps about the centre of the cell. Those beyond an edge are added to the edge.
    private mutating func interpolate(_ place: Int, reach: Int) {
        var centre = Float(-0.5).addingProduct(scale, Float(place) + 0.5)
        if filter == .bilinear { centre = max(centre, 0) }
        let below = Int(centre.rounded(.down))
        let fraction = Double(centre) - Double(below)
        first = min(max(below - reach + 1, 0), source - 1)
        let last = min(max(below + reach, 0), source - 1)
        for _ in first...last { weights.append(0) }
        for tap in 1 - reach...reach {
            let cell = min(max(below + tap, 0), source - 1)
            weights[cell - first] += kernel(Double(tap) - fraction, sharpness: -0.75)
        }
    }

    /// The cells within the filter's reach of the centre, which grows when the picture shrinks, with weights that sum to 1.
    private mutating func smooth(_ place: Int, reach: Float) {
        let support = scale >= 1 ? reach * scale : reach
        let factor = scale >= 1 ? 1 / scale : 1
        let centre = scale * (Float(place) + 0.5)
        first = max(Int(centre - support + 0.5), 0)
        let end = min(Int(centre + support + 0.5), source)
        var sum = 0.0
        for cell in first..<max(end, first + 1) {
            let weight = kernel(Double((Float(cell) - centre + 0.5) * factor), sharpness: -0.5)
            weights.append(weight)
            sum += weight
        }
        for index in weights.indices { weights[index] /= sum }
    }

    /// The filter's weight at a distance: a triangle, or Keys' cubic convolution with parameter a.
    private func kernel(_ distance: Double, sharpness a: Double) -> Double {
        let x = abs(distance)
        if filter == .bilinear { return max(0, 1 - x) }
        if x <= 1 { return ((a + 2) * x - (a + 3)) * x * x + 1 }
        return x < 2 ? ((a * x - 5 * a) * x + 8 * a) * x - 4 * a : 0
    }
}
