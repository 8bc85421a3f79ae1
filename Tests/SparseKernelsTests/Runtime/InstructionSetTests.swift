import Foundation
import KernelInterface
import SparseKernels
import Testing

/// The choice of the level: known names, tables of the right level, and the override by the environment.
@Suite("Instruction sets")
struct InstructionSetTests {
    @Test("the portable level is always there, and the best comes first")
    func portableIsAvailable() {
        #expect(InstructionSet.available.last == .portable)
        #expect(InstructionSet.known == [.avx512, .avx2, .portable])
        let inOrder = InstructionSet.known.filter { InstructionSet.available.contains($0) }
        #expect(InstructionSet.available == inOrder)
    }

    /// Each level has its own vector width, so the table's lane count identifies the sources it was compiled from.
    @Test("a table is the one compiled for its level", arguments: InstructionSet.available)
    func tableIsOfItsLevel(_ set: InstructionSet) throws {
        let lanes: [InstructionSet: Int] = [.portable: 4, .avx2: 8, .avx512: 16]
        let kernels = set.kernels
        #expect(kernels.sizes.laneCount == lanes[set])
        #expect(kernels.sizes.panelWidth == 3 * kernels.sizes.laneCount)
        // The scratch layouts assume this of every level.
        #expect(kernels.sizes.tileRows <= AttentionScratch.maximumTileRows)
        #expect(kernels.sizes.laneCount <= AttentionScratch.maximumLanes)
    }

    @Test("plans report the level they were given", arguments: InstructionSet.available)
    func plansReportTheirLevel(_ set: InstructionSet) throws {
        let shape = try AttentionShape(queryLength: 2, keyLength: 2, queryHeads: 1, kvHeads: 1, headDim: 4)
        #expect(try DenseAttention(shape, instructionSet: set).instructionSet == set)
        #expect(try GEMM(m: 1, n: 1, k: 1, instructionSet: set).instructionSet == set)
        #expect(try InstructionSet.named(set.name) == set)
        #expect("\(set)" == set.name)
    }

    @Test("an unknown name is refused with the names there are")
    func unknownName() {
        let error = #expect(throws: SparseKernelsError.self) { try InstructionSet.named("avx1024") }
        #expect(error?.code == .unsupportedInstructionSet)
        #expect(error?.argument == "instructionSet")
        #expect(error?.actual == "\"avx1024\"")
        for set in InstructionSet.available { #expect(error?.description.contains(set.name) == true) }
    }

    /// A machine with every level cannot test a missing one.
    static let isLackingLevels = InstructionSet.available.count < InstructionSet.known.count

    @Test("a level that the machine lacks is refused", .enabled(if: isLackingLevels))
    func missingLevel() {
        for set in InstructionSet.known where !InstructionSet.available.contains(set) {
            let error = #expect(throws: SparseKernelsError.self) { try GEMM(m: 1, n: 1, k: 1, instructionSet: set) }
            #expect(error?.code == .unsupportedInstructionSet)
            #expect(error?.actual.contains("which this machine does not have") == true)
        }
    }

    // The environment belongs to the process, and other tests make plans concurrently, so these run in processes of their own.

    @Test("SPARSEKERNELS_ISA forces a level on plans that name none")
    func environmentForcesLevel() async {
        await #expect(processExitsWith: .success) {
            setenv(InstructionSet.environmentVariable, "portable", 1)
            let shape = try AttentionShape(queryLength: 2, keyLength: 2, queryHeads: 1, kvHeads: 1, headDim: 4)
            #expect(try InstructionSet.selected() == .portable)
            #expect(try DenseAttention(shape).instructionSet == .portable)
            #expect(try GEMM(m: 1, n: 1, k: 1).instructionSet == .portable)
            // An argument overrides the environment.
            let best = InstructionSet.available[0]
            #expect(try DenseAttention(shape, instructionSet: best).instructionSet == best)
        }
    }

    @Test("without SPARSEKERNELS_ISA the best level runs")
    func bestLevelByDefault() async {
        await #expect(processExitsWith: .success) {
            unsetenv(InstructionSet.environmentVariable)
            let unset = try InstructionSet.selected()
            #expect(unset == InstructionSet.available[0])
            // An empty variable is ignored.
            setenv(InstructionSet.environmentVariable, "", 1)
            let empty = try InstructionSet.selected()
            #expect(empty == InstructionSet.available[0])
        }
    }

    @Test("an unknown SPARSEKERNELS_ISA is an error that names the variable and the value")
    func environmentWithUnknownLevel() async {
        await #expect(processExitsWith: .success) {
            setenv(InstructionSet.environmentVariable, "nonsense", 1)
            let shape = try AttentionShape(queryLength: 2, keyLength: 2, queryHeads: 1, kvHeads: 1, headDim: 4)
            let error = #expect(throws: SparseKernelsError.self) { try DenseAttention(shape) }
            #expect(error?.code == .unsupportedInstructionSet)
            #expect(error?.argument == "SPARSEKERNELS_ISA")
            #expect(error?.description.contains("nonsense") == true)
            #expect(error?.description.contains("portable") == true)
            #expect(throws: SparseKernelsError.self) { try GEMM(m: 1, n: 1, k: 1) }
            // A level that the caller names does not depend on the environment.
            #expect(try DenseAttention(shape, instructionSet: .portable).instructionSet == .portable)
        }
    }

    @Test("asking for the kernels of a level the machine lacks traps", .enabled(if: isLackingLevels))
    func kernelsOfMissingLevelAreNotHandedOut() async {
        await #expect(processExitsWith: .failure) {
            let missing = InstructionSet.known.first { !InstructionSet.available.contains($0) }
            _ = missing?.kernels
        }
    }
}
