public import SparseKernels

/// The centroids that SVG2 carries from one denoising step to the next, for all layers of a model.
///
/// Queries and keys of a layer move little between steps, so clusters start from those of the step before and need two
/// iterations instead of fifty. Start a new video with `reset()` or a new state.
public struct SVG2State: Sendable {
    /// How the two passes of classifier-free guidance use centroids.
    public enum Guidance: String, Hashable, Sendable, CaseIterable {
        /// Both passes continue the same centroids, as released, which halves the memory.
        case shared
        /// Each pass has its own.
        case separate
    }

    public let guidance: Guidance
    private var slots: [Slot: SVG2Centroids] = [:]

    private struct Slot: Hashable, Sendable {
        var layer: Int
        var pass: Int
    }

    public init(guidance: Guidance = .shared) { self.guidance = guidance }

    /// The centroids of a layer and pass; nil before its first step.
    public subscript(layer layer: Int, pass pass: Int) -> SVG2Centroids? {
        get { slots[Slot(layer: layer, pass: guidance == .shared ? 0 : pass)] }
        set { slots[Slot(layer: layer, pass: guidance == .shared ? 0 : pass)] = newValue }
    }

    /// Forgets all centroids, so that the next step of every layer starts anew.
    public mutating func reset() { slots.removeAll() }

    /// Layers and passes that have centroids.
    public var count: Int { slots.count }

    /// Bytes of all centroids.
    public var byteCount: Int { slots.values.reduce(0) { $0 + ($1.query.count + $1.key.count) * 4 } }
}

/// The centroids of the queries and keys of one layer.
public struct SVG2Centroids: Sendable {
    /// `[queryHeads, queryClusters, headDim]`.
    public var query: Tensor<Float>
    /// `[kvHeads, keyClusters, headDim]`.
    public var key: Tensor<Float>
    /// The video that they belong to. Its text does not count, because text has no clusters.
    public let geometry: VideoGeometry

    public init(query: Tensor<Float>, key: Tensor<Float>, geometry: VideoGeometry) {
        self.query = query
        self.key = key
        self.geometry = geometry
    }
}
