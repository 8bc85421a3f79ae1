import Foundation
import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

@Suite("Orders of tokens")
struct PermutationTests {
    @Test("an inverse undoes its permutation, for every head")
    func inverse() throws {
        let permutation = try Permutation([[2, 0, 3, 1], [3, 2, 1, 0]])
        for head in 0..<2 {
            let (order, inverse) = (Array(permutation.order(head: head)), Array(permutation.inverse.order(head: head)))
            for token in 0..<4 { #expect(order[Int(inverse[token])] == token) }
        }
        #expect(permutation.inverse.inverse == permutation)
        #expect(try Permutation.identity(length: 5).inverse == Permutation.identity(length: 5))
        #expect(try Permutation([[]]).inverse.length == 0)
    }

    @Test("heads choose among orders")
    func choice() throws {
        let orders = try [Permutation.identity(length: 3), Permutation([[2, 1, 0]])]
        let permutation = try Permutation(choosing: [1, 0, 1], from: orders)
        #expect(permutation.heads == 3 && Array(permutation.order(head: 2)) == [2, 1, 0])
        expectError(.invalidArgument, "choice[1]", containing: "below 2", "2") {
            _ = try Permutation(choosing: [0, 2], from: orders)
        }
        expectError(.invalidShape, "choice") { _ = try Permutation(choosing: [], from: orders) }
        expectError(.invalidShape, "orders[1]") {
            _ = try Permutation(choosing: [0], from: [orders[0], Permutation.identity(length: 4)])
        }
    }

    @Test("an order that is not one is an error that names the element")
    func errors() {
        expectError(.invalidArgument, "orders[0][2]", containing: "0 to 2") { _ = try Permutation([[0, 1, 1]]) }
        expectError(.invalidArgument, "orders[1][0]") { _ = try Permutation([[0, 1], [-1, 0]]) }
        expectError(.invalidArgument, "orders[0][1]") { _ = try Permutation([[0, 2]]) }
        expectError(.invalidShape, "orders[1]") { _ = try Permutation([[0, 1], [0]]) }
        expectError(.invalidShape, "orders") { _ = try Permutation([]) }
        expectError(.invalidShape, "length") { _ = try Permutation.identity(length: -1) }
    }

    @Test(
        "rows are gathered exactly, from every type and layout, on every instruction set", arguments: InstructionSet.available)
    func gathered(_ set: InstructionSet) throws {
        func check<Element: AttentionElement>(_ type: Element.Type) throws {
            for channels in [1, 7, 16, 33] {
                let tensor = try Tensor<Element>.normal([2, 5, channels], seed: 4)
                let permutation = try Permutation([[4, 0, 3, 1, 2], [1, 0, 2, 4, 3]])
                for threads in [1, 2, 7] {
                    let rows = try permutation.gathered(tensor.view(), instructionSet: set, on: WorkerPool(threads: threads))
                    for head in 0..<2 {
                        for (position, token) in permutation.order(head: head).enumerated() {
                            for channel in 0..<channels {
                                #expect(
                                    rows[flat: (head * 5 + position) * channels + channel]
                                        == tensor[flat: (head * 5 + Int(token)) * channels + channel].floatValue)
                            }
                        }
                    }
                }
                let wide = try tensor.view(layout: .nhd)
                let shared = try Permutation([[1, 0]]).gathered(wide, instructionSet: set)
                #expect(shared.shape == [5, 2, channels])
                #expect(shared[flat: 0] == tensor[flat: 5 * channels].floatValue)
            }
        }
        try check(Float.self)
        try check(Float16.self)
        try check(BFloat16.self)
    }
}

@Suite("Video geometry")
struct VideoGeometryTests {
    @Test("ranges of video, prompt and padding follow the placement of the text")
    func ranges() throws {
        let first = try VideoGeometry(frames: 3, height: 2, width: 5, textTokens: 7, promptTokens: 4)
        #expect(first.tokens == 37 && first.video == 7..<37 && first.text == 0..<7)
        #expect(first.prompt == 0..<4 && first.padding == 4..<7)
        let last = try VideoGeometry(frames: 3, tokensPerFrame: 10, textTokens: 7, textPlacement: .after, promptTokens: 0)
        #expect(last.video == 0..<30 && last.text == 30..<37 && last.prompt == 30..<30 && last.padding == 30..<37)
        #expect(try VideoGeometry(frames: 1, height: 1, width: 1).text.isEmpty)
    }

    @Test("token-major order makes the tokens of a place adjacent, and text stays")
    func axisOrder() throws {
        for placement in [VideoGeometry.TextPlacement.before, .after] {
            let geometry = try VideoGeometry(frames: 3, height: 2, width: 5, textTokens: 2, textPlacement: placement)
            let order = Array(try geometry.axisOrder([.height, .width, .frame]).order(head: 0))
            for text in geometry.text { #expect(order[text] == text) }
            for f in 0..<3 {
                for p in 0..<10 {
                    #expect(Int(order[geometry.video.lowerBound + p * 3 + f]) == geometry.video.lowerBound + f * 10 + p)
                }
            }
            #expect(try geometry.axisOrder([.frame, .height, .width]) == Permutation.identity(length: geometry.tokens))
            #expect(Set(order).count == geometry.tokens)
        }
    }

    @Test("extents out of range are errors that name them")
    func errors() throws {
        expectError(.invalidShape, "frames") { _ = try VideoGeometry(frames: 0, height: 1, width: 1) }
        expectError(.invalidShape, "width") { _ = try VideoGeometry(frames: 1, height: 1, width: -1) }
        expectError(.invalidShape, "tokensPerFrame") { _ = try VideoGeometry(frames: 1, tokensPerFrame: 0) }
        expectError(.invalidShape, "textTokens") { _ = try VideoGeometry(frames: 1, height: 1, width: 1, textTokens: -1) }
        expectError(.invalidShape, "promptTokens") {
            _ = try VideoGeometry(frames: 1, height: 1, width: 1, textTokens: 3, promptTokens: 4)
        }
        expectError(.invalidShape, "geometry") { _ = try VideoGeometry(frames: 1 << 40, height: 1 << 40, width: 2) }
        let geometry = try VideoGeometry(frames: 3, height: 2, width: 5, textTokens: 7)
        let shape = try AttentionShape(queryLength: 37, keyLength: 36, queryHeads: 1, kvHeads: 1, headDim: 4)
        expectError(.invalidShape, "keyLength", containing: "3 frames · 10 tokens + 7 text tokens = 37", "36") {
            try geometry.check(shape)
        }
        expectError(.invalidArgument, "axes") { _ = try geometry.axisOrder([.frame, .frame, .width]) }
        expectError(.invalidArgument, "axes") { _ = try geometry.axisOrder([.frame]) }
    }

    @Test("geometries survive coding, and broken ones are refused")
    func coding() throws {
        let geometry = try VideoGeometry(frames: 3, height: 2, width: 5, textTokens: 7, textPlacement: .after, promptTokens: 1)
        let data = try JSONEncoder().encode(geometry)
        #expect(try JSONDecoder().decode(VideoGeometry.self, from: data) == geometry)
        let broken = String(decoding: data, as: UTF8.self).replacingOccurrences(of: "\"frames\":3", with: "\"frames\":0")
        #expect(throws: SparseKernelsError.self) { try JSONDecoder().decode(VideoGeometry.self, from: Data(broken.utf8)) }
    }
}
