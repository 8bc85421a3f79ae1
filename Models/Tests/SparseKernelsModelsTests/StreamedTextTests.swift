import SparseKernels
import Testing

@testable import SparseKernelsModels

@Suite("Text while it is made")
struct StreamedTextTests {
    /// What is shown of chunks, and the stop string.
    private func show(_ chunks: [[UInt8]], stops: [String] = []) -> (shown: [[UInt8]], stop: Int?, text: [UInt8]) {
        var text = StreamedText(stops: stops)
        var shown = chunks.map { text.append($0) }
        shown.append(text.finish())
        return (shown, text.stop, text.bytes)
    }

    @Test("parts of characters wait for the others")
    func characters() {
        let result = show([[0x61, 0xf0], [0x9f], [0x98], [0x80, 0xc3], [0xa9]])
        #expect(result.shown == [[0x61], [], [], [0xf0, 0x9f, 0x98, 0x80], [0xc3, 0xa9], []])
        // Bytes that begin nothing, and an end in the middle, are shown at last.
        #expect(show([[0xff], [0x80], [0xc0], [0xe2, 0x82]]).shown == [[0xff], [0x80], [0xc0], [], [0xe2, 0x82]])
    }

    @Test("stop strings over the borders of tokens; the start of one waits")
    func stops() {
        let result = show(["ab".utf8, "c\n".utf8, "\nd".utf8].map(Array.init), stops: ["\n\n"])
        #expect(result.shown == [Array("ab".utf8), Array("c".utf8), [], []])
        #expect(result.stop == 0 && result.text == Array("abc".utf8))
        // A start that does not go on is shown.
        #expect(show(["a\n".utf8, "b".utf8].map(Array.init), stops: ["\n\n"]).shown == [[0x61], [0x0a, 0x62], []])
        // The first in the text counts, the longest of those at one place.
        #expect(show([Array("xxabcd".utf8)], stops: ["bc", "abc", "ab", ""]).stop == 1)
        #expect(show([Array("aXbYc".utf8)], stops: ["Y", "X"]).text == Array("a".utf8))
        // Repetitions inside of a stop string.
        #expect(show("aaab".utf8.map { [$0] }, stops: ["aab"]).text == Array("a".utf8))
        #expect(show(["abab".utf8, "abc".utf8].map(Array.init), stops: ["ababc"]).text == Array("ab".utf8))
    }

    @Test("for any cut into tokens, the shown bytes are the text up to the first stop string")
    func random() {
        var generator = SplitMix64(seed: 12)
        for _ in 0..<2000 {
            let text = (0..<Int.random(in: 0...24, using: &generator)).map { _ in
                Array("ab\né".utf8).randomElement(using: &generator)!
            }
            let stops = (0..<Int.random(in: 0...3, using: &generator)).map { _ in
                String((0..<Int.random(in: 1...3, using: &generator)).map { _ in "ab\né".randomElement(using: &generator)! })
            }
            var (chunks, position): ([[UInt8]], Int) = ([], 0)
            while position < text.count {
                let end = min(text.count, position + Int.random(in: 0...4, using: &generator))
                chunks.append(Array(text[position..<end]))
                position = end
            }
            let result = show(chunks, stops: stops)
            // The first place where a stop string lies in what arrived with the first token that completes any.
            var arrived: [UInt8] = []
            var expected = text
            for chunk in chunks {
                arrived += chunk
                let places = stops.compactMap { stop in
                    arrived.indices.first { arrived[$0...].starts(with: Array(stop.utf8)) }
                }
                if let first = places.min() {
                    expected = Array(arrived[..<first])
                    break
                }
            }
            #expect(result.text == expected && result.shown.flatMap { $0 } == expected, "\(text) \(stops) \(chunks)")
        }
    }
}
