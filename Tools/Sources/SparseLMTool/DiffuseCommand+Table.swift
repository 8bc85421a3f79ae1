import ArgumentParser
import FastDLLM
import Foundation
import LanguageMeasuring
import SparseKernels
import SparseKernelsModels
import Terminal

extension DiffuseCommand {
    /// Bytes of a text that is continued.
    private static let promptBytes = 256

    /// Ways to decode on questions, then on continuations.
    func runTable() throws {
        let model = try load()
        let pool = pool
        let longest = max(lengths.numbers.max() ?? 0, length) + max(Self.promptBytes, 256)
        let session = try DiffusionSession(model, capacity: longest, cacheFormat: cacheFormat)
        var measurer = DiffusionMeasurer(session, on: pool)
        if !json { DiffusionRow.table.header.forEach { printNow($0) } }
        var rows = try answerQuestions(&measurer)
        if samples > 0 {
            for length in lengths.numbers { rows += try continueSources(&measurer, length: length) }
        }
        if json { FileHandle.standardOutput.write(try RowFile<DiffusionRow>.encode(rows)) }
    }

    private func show(_ row: DiffusionRow, _ rows: inout [DiffusionRow]) {
        rows.append(row)
        if !json { printNow(DiffusionRow.table.line(row.cells(first: rows[0]))) }
    }

    private func answerQuestions(_ measurer: inout DiffusionMeasurer) throws -> [DiffusionRow] {
        let list = DiffusionTask.questions(questions, seed: seed)
        guard !list.isEmpty else { return [] }
        let cases = DiffusionCase.main(blockLength: block) + DiffusionCase.sweep(blockLength: block)
        let progress = ProgressLine.onTerminal(total: cases.count)
        // Threads and scratch are there before the first time is taken.
        _ = try measurer.answer([list[0]], with: cases[cases.count - 1], length: length)
        var rows: [DiffusionRow] = []
        for decoding in cases {
            progress?.begin(decoding.name)
            let row = try measurer.answer(list, with: decoding, length: length) { right, answered in
                progress?.begin("\(decoding.name): \(right) of \(answered)")
            }
            progress?.finishCase()
            progress?.clear()
            show(row, &rows)
        }
        return rows
    }

    private func continueSources(_ measurer: inout DiffusionMeasurer, length: Int) throws -> [DiffusionRow] {
        guard let path = ModelData.sources else {
            throw ValidationError("the sources of the repository are not beside this program; give --samples 0")
        }
        let corpus = try TextCorpus(path: path, tokenizer: ByteTokenizer())
        let prompts = try corpus.windows(samples, length: Self.promptBytes).map { Array(corpus.tokens[$0]) }
        var (rows, expected): ([DiffusionRow], [[Int]]?) = ([], nil)
        let cases = DiffusionCase.main(blockLength: block)
        let progress = ProgressLine.onTerminal(total: cases.count * samples * length)
        for decoding in cases {
            progress?.begin("\(decoding.name), \(length)")
            let (row, texts) = try measurer.continuations(of: prompts, with: decoding, length: length, expected: expected) {
                for _ in 0..<$0 { progress?.finishCase() }
            }
            expected = expected ?? texts
            progress?.clear()
            show(row, &rows)
        }
        return rows
    }
}
