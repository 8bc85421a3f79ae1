import Foundation
import SparseKernelsReference
import SparseVideoGen
import Testing

/// Sparse VideoGen 2 in `Double` from labels on, written from its definition:
/// labels → centroids → weights → kept key clusters → pairs of tokens → attention.
struct SVG2Oracle<Element: AttentionElement> {
    let shape: AttentionShape
    let geometry: VideoGeometry
    let query: Tensor<Element>
    let key: Tensor<Element>
    let value: Tensor<Element>
    let selected: SVG2Selection
    /// The key clusters that the masks keep, `[queryHeads][queryClusters]`.
    let kept: [[[Int]]]

    init(
        _ operands: SVGAttentionTests.Operands, _ type: Element.Type, selected: SVG2Selection, query: Tensor<Element>? = nil,
        key: Tensor<Element>? = nil, value: Tensor<Element>? = nil
    ) {
        (shape, geometry, self.selected) = (operands.shape, operands.geometry, selected)
        self.query = query ?? operands.query.converted(to: type)
        self.key = key ?? operands.key.converted(to: type)
        self.value = value ?? operands.value.converted(to: type)
        let first = operands.geometry.textTokens > 0 && operands.geometry.textPlacement == .before ? 2 : 0
        kept = selected.masks.enumerated().map { head, mask in
            let kvHead = head / operands.shape.queryHeadsPerKVHead
            return selected.query.sizes[head].indices.map { row in
                selected.key.sizes[kvHead].indices.filter { mask[0, first + row, first + $0] }
            }
        }
    }

    private func videoRows(_ operand: Tensor<Element>, head: Int) throws -> [[Double]] {
        let view = try operand.view()
        return geometry.video.map { token in (0..<shape.headDim).map { Double(view[head, token, $0].floatValue) } }
    }

    private func labels(_ clusters: Clustering, head: Int) -> [Int] {
        (0..<geometry.videoTokens).map { Int(clusters.labels[head, $0]) }
    }

    /// The centroids of a head's labels; a cluster without finite rows has the given one.
    private func centroids(_ clusters: Clustering, _ operand: Tensor<Element>, head: Int) throws -> [[Double]] {
        let given = clusters.sizes[head].indices.map { cluster in
            (0..<shape.headDim).map { Double(clusters.centroids[head, cluster, $0]) }
        }
        return try ReferenceKMeans(points: videoRows(operand, head: head)).means(labels(clusters, head: head), keeping: given)
    }

    /// Checks what each query cluster keeps: enough mass, the largest weights, and none too many. Weights that are within the
    /// rounding of single-precision scores may stand for each other.
    func expectSelection(mass: Double, minimumKeyRatio: Double, softmaxScale: Double? = nil, _ label: String) throws {
        let scale = softmaxScale ?? 1 / Double(shape.headDim).squareRoot()
        for head in 0..<shape.queryHeads {
            let kvHead = head / shape.queryHeadsPerKVHead
            let keys = try centroids(selected.key, key, head: kvHead)
            let sizes = keys.indices.map { cluster in labels(selected.key, head: kvHead).count { $0 == cluster } }
            #expect(sizes == selected.key.sizes[kvHead])
            for (row, centroid) in try centroids(selected.query, query, head: head).enumerated() {
                let terms = keys.map { key in zip(centroid, key).map { scale * $0 * $1 } }
                let scores = terms.map { $0.reduce(0, +) }
                // A cluster whose score is NaN or +∞ has no weight and is kept. −∞ is a score: e^−∞ is 0.
                let unknown = scores.indices.filter { sizes[$0] > 0 && !(scores[$0] < .infinity) }
                let counted = scores.indices.filter { sizes[$0] > 0 && scores[$0].isFinite }
                let isInfinite = unknown.contains { scores[$0] == .infinity }
                let largest = counted.map { scores[$0] }.max() ?? 0
                var weights = [Double](repeating: 0, count: keys.count)
                for column in counted where !isInfinite {
                    weights[column] = Double(sizes[column]) * exp(scores[column] - largest)
                }
                let total = weights.reduce(0, +)
                if total > 0 { weights = weights.map { $0 / total } }
                let magnitude = counted.map { terms[$0].reduce(0) { $0 + abs($1) } }.max() ?? 0
                let tolerance = 4e-6 * (1 + magnitude)
                let minimum = Int(minimumKeyRatio * Double(keys.count))
                let list = kept[head][row]
                let known = list.filter { !unknown.contains($0) }
                let text = "\(label): head \(head), cluster \(row) keeps \(list) of \(weights)"
                #expect(unknown.allSatisfy(list.contains), "\(text)")
                #expect(list.count >= minimum, "\(text)")
                let sum = known.reduce(0) { $0 + weights[$1] }
                if total > 0 { #expect(sum >= mass - tolerance, "\(text)") }
                let smallest = known.map { weights[$0] }.min() ?? 1
                let dropped = scores.indices.filter { !list.contains($0) }.map { weights[$0] }.max() ?? 0
                #expect(smallest >= dropped * (1 - tolerance) - 1e-30, "\(text)")
                if list.count > minimum && centroid.allSatisfy(\.isFinite) && list.count == known.count {
                    #expect(sum - smallest < mass + tolerance, "\(text)")
                }
            }
        }
    }

    /// Whether a query token sees a key token.
    func isVisible(head: Int, query: Int, key: Int) -> Bool {
        if geometry.padding.contains(query) || geometry.padding.contains(key) {
            return geometry.padding.contains(query) && geometry.padding.contains(key)
        }
        if geometry.prompt.contains(query) || geometry.prompt.contains(key) { return true }
        let first = geometry.video.lowerBound
        let row = Int(selected.query.labels[head, query - first])
        let column = Int(selected.key.labels[head / shape.queryHeadsPerKVHead, key - first])
        return kept[head][row].contains(column)
    }

    private func isFinite(_ operand: Tensor<Element>, head: Int, token: Int) -> Bool {
        (0..<operand.shape[2]).allSatisfy { operand[head, token, $0].floatValue.isFinite }
    }

    /// Compares all rows that see finite tokens only with attention over the visible pairs.
    /// - Returns: the rows that see others.
    @discardableResult
    func expectOutput(_ output: Tensor<Float>, _ label: String) throws -> [(head: Int, token: Int)] {
        let oracle = ReferenceAttention(shape)
        let view = try query.view()
        var worst = (ratio: 0.0, text: "")
        var others: [(head: Int, token: Int)] = []
        for head in 0..<shape.queryHeads {
            let kvHead = head / shape.queryHeadsPerKVHead
            let (keys, values) = try (key.view().rows(head: kvHead), value.view().rows(head: kvHead))
            let isNumber = (0..<shape.keyLength).map {
                isFinite(key, head: kvHead, token: $0) && isFinite(value, head: kvHead, token: $0)
            }
            var pairs = 0
            for token in 0..<shape.queryLength {
                let visible = (0..<shape.keyLength).map { isVisible(head: head, query: token, key: $0) }
                pairs += visible.count { $0 }
                let seesOthers = visible.indices.contains { visible[$0] && !isNumber[$0] }
                if seesOthers || !isFinite(query, head: head, token: token) {
                    others.append((head, token))
                    continue
                }
                let row = oracle.row(
                    head: head, token: token, query: view.row(head: head, token: token), keys: keys, values: values,
                    hides: { !visible[$0] })
                let bound = AttentionErrorBound(row, headDim: shape.headDim).output
                for (channel, expected) in row.output.enumerated() {
                    let error = abs(Double(output[head, token, channel]) - expected)
                    if !(error <= worst.ratio * bound) {
                        worst = (error / max(bound, 1e-300), "head \(head), token \(token): off by \(error) of \(bound)")
                    }
                }
            }
            let density = Double(pairs) / Double(shape.queryLength * shape.keyLength)
            #expect(abs(selected.density(head: head) - density) < 1e-12, "\(label)")
        }
        #expect(worst.ratio <= 1, "\(label): \(worst.text)")
        return others
    }
}
