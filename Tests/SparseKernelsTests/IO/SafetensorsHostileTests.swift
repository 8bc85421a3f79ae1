import HostileFiles
import SparseKernels
import Testing

/// A header that breaks one rule, and text that the message must contain.
struct HostileHeader: CustomTestStringConvertible, Sendable {
    let rule: String
    let header: String
    var data = 0
    let message: String

    var testDescription: String { rule }

    init(_ rule: String, _ header: String, data: Int = 0, _ message: String) {
        self.rule = rule
        self.header = header
        self.data = data
        self.message = message
    }

    /// One tensor "x" with one field replaced, and 8 bytes of data.
    init(_ rule: String, dtype: String = #""F32""#, shape: String = "[2]", offsets: String = "[0,8]", _ message: String) {
        let header = #"{"x":{"dtype":\#(dtype),"shape":\#(shape),"data_offsets":\#(offsets)}}"#
        self.init(rule, header, data: 8, message)
    }
}

private let structure: [HostileHeader] = [
    .init("empty header", "", "the end of the header"),
    .init("an array", "[]", "`{` at its start, got `[`"),
    .init("white space only", " \n", "`{` at its start, got the end of the header"),
    .init("text first", " x{}", "`{` at its start, got `x`"),
    .init("form feed first", "\u{c}{}", "`{` at its start, got byte 0xc"),
    .init("byte order mark", "\u{feff}{}", "`{` at its start, got byte 0xef"),
    .init("unclosed object", "{", "got the end of the header"),
    .init("unclosed string", #"{"x"#, "`\"` at the end of a string"),
    .init("text after", "{}x", "nothing but white space after the header's object, got `x`"),
    .init("form feed after", "{}\u{c}", "nothing but white space after the header's object, got byte 0xc"),
    .init("zero byte after", "{} \0", "got byte 0x0"),
    .init("second object", "{}{}", "nothing but white space"),
    .init("trailing comma", #"{"__metadata__":{},}"#, "a key in quotation marks, got `}`"),
    .init("leading comma", "{,}", "a key in quotation marks"),
    .init("no comma", #"{"__metadata__":{} "x":{}}"#, "`,` or `}`"),
    .init("no colon", #"{"x" {}}"#, "`:` after a key"),
    .init("key without quotation marks", "{x:1}", "a key in quotation marks"),
    .init("comment", "{/**/}", "a key in quotation marks, got `/`"),
    .init("entry is a number", #"{"x":1}"#, "an object with dtype, shape and data_offsets, got `1`"),
    .init("entry is null", #"{"x":null}"#, "an object with dtype, shape and data_offsets, got `n`"),
    .init("nested entry", #"{"x":{"y":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}}"#, "no dtype"),
    .init("unknown key beside a missing one", #"{"x":{"dtype":"F32","strides":[1]}}"#, "no shape"),
    .init("empty entry", #"{"x":{}}"#, "no dtype"),
    .init("no shape", #"{"x":{"dtype":"F32","data_offsets":[0,0]}}"#, "no shape"),
    .init("no offsets", #"{"x":{"dtype":"F32","shape":[0]}}"#, "no data_offsets"),
    .init("key twice", #"{"x":{"dtype":"F32","dtype":"F32"}}"#, "dtype again"),
    .init("shape twice", #"{"x":{"shape":[],"shape":[]}}"#, "shape again"),
    .init("key twice, once escaped", #"{"x":{"dtype":"F32","d\u0074ype":"F32"}}"#, "dtype again"),
    .init(
        "name twice",
        #"{"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
        "tensor \"x\" (header byte 57) must be listed once"),
    .init(
        "name twice, spelled differently",
        "{\"\u{e9}\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},\"e\u{301}\":{}}", "listed once"),
    .init("metadata twice", #"{"__metadata__":{},"__metadata__":{}}"#, "one __metadata__"),
    .init("metadata key twice", #"{"__metadata__":{"a":"1","a":"1"}}"#, "\"a\" again"),
    .init(
        "metadata is a string", #"{"__metadata__":"x"}"#, "__metadata__ (header byte 16) must be an object of strings or null"),
    .init("metadata is nul", #"{"__metadata__":nul}"#, "an object of strings or null, got `n`"),
    .init("metadata is null and more", #"{"__metadata__":nullx}"#, "`,` or `}`, got `x`"),
    .init("metadata is null, twice", #"{"__metadata__":null,"__metadata__":null}"#, "one __metadata__"),
    .init("metadata null and an object", #"{"__metadata__":null,"__metadata__":{}}"#, "one __metadata__"),
    .init("metadata is an array", #"{"__metadata__":[]}"#, "an object of strings or null, got `[`"),
    .init("metadata text is null", #"{"__metadata__":{"a":null}}"#, "text in quotation marks, got `n`"),
    .init("metadata number", #"{"__metadata__":{"a":1}}"#, "text in quotation marks, got `1`"),
    .init("metadata object", #"{"__metadata__":{"a":{}}}"#, "text in quotation marks, got `{`"),
]

private let strings: [HostileHeader] = [
    .init("unknown escape", #"{"\x":1}"#, "an escape that JSON has, got `x`"),
    .init("short escape", #"{"\u12"#, "`\"` at the end of a string"),
    .init("escape with other digits", #"{"\u12g4":1}"#, "four hexadecimal digits after \\u, got `g`"),
    .init("escape with a sign", #"{"\u+123":1}"#, "four hexadecimal digits after \\u, got `+`"),
    .init("high surrogate alone", #"{"\ud83d":1}"#, "\\ud83d alone"),
    .init("high surrogate, other escape", #"{"\ud83d\n":1}"#, "\\ud83d alone"),
    .init("two high surrogates", #"{"\ud83d\ud83d":1}"#, "\\ud83d alone"),
    .init("low surrogate alone", #"{"\ude00":1}"#, "\\ude00 alone"),
    .init("raw newline", "{\"a\nb\":1}", "without unescaped control characters, got byte 0xa"),
    .init("raw zero byte", "{\"a\0\":1}", "got byte 0x0"),
    .init("raw control after an escape", "{\"\\n\u{1f}\":1}", "got byte 0x1f"),
]

private let values: [HostileHeader] = [
    .init("negative extent", shape: "[-1]", "tensor \"x\", shape (header byte 29) must be a plain integer"),
    .init("negative extent, value", shape: "[-2]", "got -2"),
    .init("plus sign", shape: "[+2]", "got +2"),
    .init("fraction", shape: "[2.0]", "got 2.0"),
    .init("exponent", shape: "[2e0]", "got 2e0"),
    .init("large exponent", shape: "[2E+9]", "got 2E+9"),
    .init("leading zero", shape: "[02]", "got 02"),
    .init("two zeros", shape: "[00]", "got 00"),
    .init("hexadecimal", shape: "[0x2]", "got 0x2"),
    .init("word", shape: "[NaN]", "got NaN"),
    .init("extent in quotation marks", shape: #"["2"]"#, "got `\"`"),
    .init("nested shape", shape: "[[2]]", "got `[`"),
    .init("other digits", shape: "[٢]", "got byte 0xd9"),
    .init("shape is a number", shape: "2", "an array of integers, got `2`"),
    .init("shape is null", shape: "null", "an array of integers"),
    .init("open shape", shape: "[2 2]", "`,` or `]`, got `2`"),
    .init("comma in shape", shape: "[2,]", "got `]`"),
    .init("only a comma in shape", shape: "[,]", "got `,`"),
    .init("extent past Int.max", shape: "[9223372036854775808]", "9223372036854775807, got 9223372036854775808"),
    .init("extent past 64 bits", shape: "[18446744073709551618]", "got 18446744073709551618"),
    .init("extent of 400 digits", shape: "[\(String(repeating: "9", count: 400))]", "got 99999999999999999999999999999999"),
    .init("product overflows", shape: "[4294967296,4294967296]", "63 bits"),
    .init("product wraps to the right size", shape: "[2,9223372036854775807,2]", "63 bits"),
    .init("bytes overflow", shape: "[4611686018427387904]", "63 bits"),
    .init("type without a name", dtype: #""""#, "1 to 64 printable ASCII characters, got \"\""),
    .init("type with a control character", dtype: #""F\u001b[31m""#, "printable ASCII characters, got \"F\\u{1B}[31m\""),
    .init("type of other letters", dtype: #""Ф32""#, "printable ASCII characters, got \"Ф32\""),
    .init("type of 65 characters", dtype: "\"\(String(repeating: "F", count: 65))\"", "1 to 64 printable"),
    .init("type is null", dtype: "null", "an element type in quotation marks, got `n`"),
    .init("unknown type, shape overflows", dtype: #""F3""#, shape: "[4294967296,4294967296]", "63 bits"),
    .init("unknown type, offsets past the end", dtype: #""F3""#, offsets: "[0,9]", "at most the 8 bytes"),
    .init("unknown type, data behind", dtype: #""F3""#, offsets: "[0,7]", "7 bytes, where the last tensor ends, got 8"),
    .init("unknown type, hole", dtype: #""F3""#, offsets: "[1,8]", "got 1, a hole"),
    .init("newer type of another size", dtype: #""F4""#, shape: "[8]", "4 bytes apart for F4 [8], got 8"),
    .init("half a byte", dtype: #""F4""#, shape: "[15]", "a whole number of bytes of F4, whose elements have 4 bits, got [15]"),
    .init("six bits", dtype: #""F6_E2M3""#, shape: "[11]", "a whole number of bytes of F6_E2M3, whose elements have 6 bits"),
    .init("type is a number", dtype: "32", "an element type in quotation marks, got `3`"),
    .init("offsets swapped", offsets: "[8,0]", "ascending and at most the 8 bytes of the data section, got [8, 0]"),
    .init("offsets past the end", offsets: "[8,16]", "got [8, 16]"),
    .init("offsets at Int.max", offsets: "[9223372036854775799,9223372036854775807]", "at most the 8 bytes"),
    .init("negative offset", offsets: "[-8,0]", "data_offsets (header byte 48) must be a plain integer"),
    .init("one offset", offsets: "[0]", "2 integers, got 1"),
    .init("three offsets", offsets: "[0,8,8]", "2 integers, got more"),
    .init("no offset", offsets: "[]", "2 integers, got 0"),
    .init("too few bytes", offsets: "[0,4]", "8 bytes apart for F32 [2], got 4"),
    .init("type of another size", dtype: #""F64""#, "16 bytes apart for F64 [2], got 8"),
    .init("empty shape is a scalar", shape: "[]", "4 bytes apart for F32 [], got 8"),
    .init("data behind the last tensor", shape: "[1]", offsets: "[0,4]", "4 bytes, where the last tensor ends, got 8"),
    .init("hole at the start", shape: "[1]", offsets: "[4,8]", "from 0 on, where the data section starts, got 4, a hole"),
]

private func two(_ a: String, _ b: String) -> String {
    #"{"a":{"dtype":"U8","shape":[4],"data_offsets":\#(a)},"b":{"dtype":"U8","shape":[4],"data_offsets":\#(b)}}"#
}

private let ranges: [HostileHeader] = [
    .init("overlap", two("[0,4]", "[2,6]"), data: 6, "tensor \"b\", data_offsets must be from 4 on"),
    .init("overlap, value", two("[0,4]", "[2,6]"), data: 6, "where tensor \"a\" ends, got 2, an overlap"),
    .init("same bytes twice", two("[0,4]", "[0,4]"), data: 4, "got 0, an overlap"),
    .init("hole", two("[0,4]", "[6,10]"), data: 10, "got 6, a hole"),
    .init(
        "order in the header does not matter", two("[6,10]", "[0,4]"), data: 10,
        "tensor \"a\", data_offsets must be from 4 on"),
    .init("data without tensors", "{}", data: 1, "0 bytes, where the last tensor ends, got 1"),
]

/// The values of keys that the format does not define are not stored, but must be JSON.
private let extras: [HostileHeader] = [
    ("", "`}`"), ("nul", "`n`"), ("TRUE", "`T`"), ("truefalse", "`f`"), ("NaN", "`N`"), ("01", "`0`"), ("-", "`-`"),
    ("-01", "`-`"),
    ("1.", "`1`"), (".5", "`.`"), ("+1", "`+`"), ("1e", "`1`"), ("1e+", "`1`"), ("1.e5", "`1`"), ("0x1", "`0`"), ("1 2", "`2`"),
    ("[1,]", "`]`"), ("[,1]", "`,`"), ("[1 2]", "`2`"), ("[1", "`}`"), ("]", "`]`"), ("[}", "`}`"), ("[1}", "`}`"),
    ("{1:2}", "`1`"),
    (#"{"a"}"#, "`}`"), (#"{"a":}"#, "`}`"), (#"{"a":1,}"#, "`}`"), (#"{"a":1]"#, "`]`"), (#"{"a" 1}"#, "`1`"), ("'a'", "`'`"),
    (#""\x""#, "`x`"), (#""\ud800""#, "\\ud800 alone"), ("\"a\nb\"", "byte 0xa"), ("[[{\"a\":[tru]}]]", "`t`"),
].map { value, message in
    HostileHeader(
        "extra key: \(value)", #"{"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"more":\#(value)}}"#, "got \(message)")
}

@Suite struct SafetensorsHostileTests {
    @Test(arguments: structure + strings + values + ranges + extras)
    func headerIsRejected(_ hostile: HostileHeader) {
        expectMalformed(fileBytes(hostile.header, data: hostile.data), hostile.message)
    }

    @Test func theTemplateItselfIsFine() throws {
        let header = #"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#
        #expect(try SafetensorsFile(bytes: fileBytes(header, data: 8)).tensors.count == 1)
        #expect(try SafetensorsFile(bytes: fileBytes(two("[4,8]", "[0,4]"), data: 8)).tensors.map(\.name) == ["b", "a"])
    }

    // MARK: - Lengths

    @Test(arguments: 0..<8)
    func fileShorterThanTheLength(_ count: Int) {
        expectMalformed(
            [UInt8](repeating: 0, count: count),
            count == 0 ? "a safetensors file, got an empty file" : "8 bytes of header length or more, got \(count) bytes")
    }

    @Test(arguments: [3, 100_000_000, 100_000_001, 1 << 32, 1 << 63, .max, .max - 7] as [UInt64])
    func lengthPastTheEnd(_ length: UInt64) {
        let bytes = (0..<8).map { UInt8(truncatingIfNeeded: length >> (8 * UInt64($0))) } + Array("{}".utf8)
        expectMalformed(bytes, "header length must be at most the 2 bytes that follow it in the file, got \(length)")
    }

    @Test func everyTruncationIsRejected() throws {
        for sample in try sampleSafetensors() {
            for count in 0..<sample.count { expectMalformed(Array(sample.prefix(count))) }
        }
    }

    // MARK: - Bytes that are not text

    @Test(
        arguments: [[0xff], [0xc0, 0x80], [0xed, 0xa0, 0x80], [0xf4, 0x90, 0x80, 0x80], [0xe2, 0x82], [0x80]] as [[UInt8]])
    func invalidUTF8(_ bytes: [UInt8]) {
        expectMalformed(fileBytes(Array("{\"".utf8) + bytes + Array("\":{}}".utf8)), "valid UTF-8")
        expectMalformed(fileBytes(Array("{\"\\n".utf8) + bytes + Array("\":{}}".utf8)), "valid UTF-8")
        expectMalformed(fileBytes(Array("{\"__metadata__\":{\"a\":\"".utf8) + bytes + Array("\"}}".utf8)), "valid UTF-8")
    }

    // MARK: - Size

    /// Each of these takes seconds or the whole stack when the work is not linear.
    @Test(.timeLimit(.minutes(1)))
    func largeInputsTakeLinearTime() throws {
        for bracket in ["[", "{", "{\"a\":", "[[0],"] {
            expectMalformed(fileBytes("{\"x\":" + String(repeating: bracket, count: 200_000)))
            expectMalformed(fileBytes(#"{"x":{"shape":"# + String(repeating: bracket, count: 200_000)))
        }
        for (opening, closing) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
            func nested(_ depth: Int) -> [UInt8] {
                let value = String(repeating: opening, count: depth) + "0" + String(repeating: closing, count: depth)
                return fileBytes(#"{"x":{"dtype":"U8","shape":[0],"more":\#(value),"data_offsets":[0,0]}}"#)
            }
            expectMalformed(nested(200_000), "values nested at most 125 deep")
            // The limit is that of the reference implementation, also when an opening is two levels.
            let limit = opening.hasPrefix("[{") ? 62 : 125
            #expect(throws: Never.self) { try SafetensorsFile(bytes: nested(limit)) }
            expectMalformed(nested(limit + 1), "values nested at most 125 deep")
        }
        let wide = "[" + String(repeating: "{},[],\"a\",-1.5e-3,", count: 50_000) + "0]"
        let extra = #"{"x":{"more":\#(wide),"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#
        #expect(try SafetensorsFile(bytes: fileBytes(extra)).tensors.count == 1)
        let long = String(repeating: "long ", count: 100_000)
        expectMalformed(fileBytes("{\"\(long)\":{}}"), "no dtype")
        expectMalformed(fileBytes(#"{"x":{"dtype":"\#(long)"}}"#), "got \"long long")
        let ones = String(repeating: ",1", count: 200_000)
        expectMalformed(fileBytes(#"{"x":{"dtype":"U8","shape":[1\#(ones)],"data_offsets":[0,0]}}"#), "200001 in all")
    }

    /// Swift sorts the marks of a character when it hashes a string, in quadratic time. U+0F73 is not itself reordered, but
    /// decomposes into two marks that are.
    @Test(.timeLimit(.minutes(1)), arguments: ["\u{302}\u{323}", "\u{f73}"])
    func combiningMarksAreBounded(_ marks: String) throws {
        let many = String(repeating: marks, count: 200_000)
        expectMalformed(fileBytes("{\"a\(many)\":{}}"), "at most 30 combining marks in a row")
        expectMalformed(fileBytes("{\"__metadata__\":{\"a\(many)\":\"\"}}"), "at most 30 combining marks in a row")
        let few = "a" + String(repeating: marks, count: 15)
        let header = "{\"__metadata__\":{\"\(few)\":\"\(many)\"}}"
        let metadata = try SafetensorsFile(bytes: fileBytes(header)).metadata
        #expect(metadata[few]?.unicodeScalars.first == marks.unicodeScalars.first)
    }

    @Test func manyTensors() throws {
        var writer = SafetensorsWriter()
        for i in 0..<5000 { try writer.add("layers.\(i).weight", try Tensor<Float>([1], [Float(i)])) }
        let file = try SafetensorsFile(bytes: writer.encoded())
        #expect(file.tensors.count == 5000)
        #expect(try file.span("layers.4321.weight", as: Float.self)[0] == 4321)
    }

    // MARK: - Random damage

    /// The fuzzing program in `Fuzz/` runs the same generator without a limit.
    @Test func twentyThousandDamagedFiles() throws {
        var mutator = SafetensorsMutator(seed: 20, samples: try sampleSafetensors())
        var accepted = 0
        for run in 0..<20_000 {
            do {
                try readEverything(mutator.next(), rewrites: run % 8 == 0)
                accepted += 1
            } catch is SparseKernelsError {
                continue
            }
        }
        #expect(accepted > 1000 && accepted < 19_000)
    }
}
