import Foundation

/// Memory that can be had without swapping.
enum FreeMemory {
    /// What the Linux kernel estimates; elsewhere half of what the machine has.
    static let byteCount: Int = {
        let meminfo = (try? String(contentsOfFile: "/proc/meminfo", encoding: .utf8)) ?? ""
        for line in meminfo.split(separator: "\n") where line.hasPrefix("MemAvailable:") {
            let words = line.split(separator: " ")
            if words.count > 1, let kibibytes = Int(words[1]) { return kibibytes << 10 }
        }
        return Int(clamping: ProcessInfo.processInfo.physicalMemory / 2)
    }()
}
