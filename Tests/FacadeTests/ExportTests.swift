import DuoAttention
import MInference
import SpargeAttention
import Testing
import XAttention

@Suite("Façades")
struct ExportTests {
    @Test("importing a paper's module brings the operators it is built from")
    func exports() throws {
        let grid = try BlockGrid(queryLength: 10, keyLength: 10, queryBlockSize: 4, keyBlockSize: 4, isCausal: true)
        #expect(grid.reachableBlocks == 6)
    }
}
