import SparseKernels
import SparseKernelsModels
import Testing

@Suite("Prompts of sprites")
struct SpritePromptTests {
    @Test("words become the ids of the model's description")
    func tokens() throws {
        let prompt = try SpritePrompt(
            sprites: ["circle,red,x=3,y=2,right", "white, diamond,x=7,y=0,left=1,down=3"], background: "texture=1,colour=2")
        let expected = [2, 7, 11, 13, 16, 26, 33, 44, 49, 15, 22, 30, 31, 41, 52]
        #expect(prompt.tokens == expected + [Int](repeating: 0, count: 17))
        let plain = try SpritePrompt(sprites: ["square,cyan"])
        #expect(plain.tokens.prefix(9) == [1, 5, 10, 14, 21, 26, 34, 42, 49])
        #expect(try SpritePrompt(sprites: ["square,cyan"], background: "color=3").backgroundColour == 3)
    }

    @Test("what a prompt prints is read back, and random prompts are valid and repeatable")
    func roundTrip() throws {
        var different: Set<SpritePrompt> = []
        for seed in 0..<200 {
            let prompt = SpritePrompt(seed: UInt64(seed))
            #expect(prompt == SpritePrompt(seed: UInt64(seed)))
            let read = try SpritePrompt(
                sprites: prompt.sprites.map(\.description),
                background: "texture=\(prompt.texture),colour=\(prompt.backgroundColour)")
            #expect(read == prompt)
            #expect(prompt.tokens.count == 32 && prompt.tokens.allSatisfy { (0..<53).contains($0) })
            different.insert(prompt)
        }
        #expect(different.count > 190)
        #expect(Set(different.map(\.sprites.count)) == [1, 2, 3])
    }

    @Test(
        "what is wrong is quoted",
        arguments: [
            ("circle", "no colour"), ("red", "no shape"), ("circle,red,blue", "\"blue\""), ("circle,pink", "\"pink\""),
            ("circle,red,x=8", "\"x=8\""), ("circle,red,x", "\"x\""), ("circle,red,right=4", "\"right=4\""),
            ("circle,red,left,right", "\"right\""), ("circle=1,red", "\"circle=1\""), ("", "\"\""), ("circle,red,", "\"\""),
        ])
    func refusals(text: String, quoted: String) throws {
        let error = try #require(throws: SparseKernelsError.self) { try SpritePrompt(sprites: [text]) }
        #expect(error.code == .invalidArgument && error.actual.contains(quoted), "\(error)")
    }

    @Test("too few or many sprites and other backgrounds are refused")
    func backgrounds() throws {
        let one = "circle,red"
        #expect(throws: SparseKernelsError.self) { try SpritePrompt(sprites: [String]()) }
        #expect(throws: SparseKernelsError.self) { try SpritePrompt(sprites: [one, one, one, one]) }
        for background in ["texture=4", "texture", "colour=-1", "shade=1", "texture=1,texture=1"] {
            #expect(throws: SparseKernelsError.self) { try SpritePrompt(sprites: [one], background: background) }
        }
        #expect(throws: SparseKernelsError.self) {
            try SpritePrompt(sprites: [.init(.circle, .red, x: 8)])
        }
    }
}
