internal import Foundation
public import SparseKernels

extension PS3Configuration {
    /// The configuration of a released checkpoint.
    ///
    /// Read are `ps3_scales`, `max_select_num`, `max_select_num_each_scale`, `select_based_on_layer`, `radio` and `model_name`, of the object
    /// `vision_config` or of the whole text. The number of heads follows from the name of the model: 12 for `base`, 16 for `large` and
    /// `so400m`.
    ///
    /// - Parameters:
    ///   - json: the text of `config.json`.
    ///   - heads: heads of the attention, for models of other names; nil means those of the name.
    /// - Throws: `.malformedFile` for text that is no such object, `.notFound` for a file without scales or a model whose heads are not
    ///   known, `.invalidArgument` for RADIO backbones, and the errors of ``PS3Scales`` and ``PS3Budget``.
    public init(json: String, heads: Int? = nil) throws(SparseKernelsError) {
        let file: PS3ConfigurationFile
        do {
            file = try JSONDecoder().decode(PS3ConfigurationFile.self, from: Data(json.utf8))
        } catch {
            throw SparseKernelsError(
                .malformedFile, "json", expected: "an object with the settings of PS3, or with them as vision_config",
                actual: "\(json.prefix(80))")
        }
        let settings = file.vision ?? file.own
        guard let sides = settings.sides else {
            throw SparseKernelsError(.notFound, "json", expected: "ps3_scales", actual: "none")
        }
        try require(settings.isRADIO != true, .invalidArgument, "radio", expected: "false", actual: "true")
        var known = heads
        if known == nil, let name = settings.model {
            known = name.contains("so400m") || name.contains("large") ? 16 : name.contains("base") ? 12 : nil
        }
        guard let known else {
            throw SparseKernelsError(
                .notFound, "heads", expected: "given, for a model that is not base, large or so400m",
                actual: settings.model ?? "no model_name")
        }
        let scales = try PS3Scales(sides.sorted())
        let budget =
            if let perScale = settings.perScale {
                try PS3Budget(perScale: perScale, scales)
            } else {
                try PS3Budget(settings.budget ?? 1280, scales)
            }
        self.init(
            scales: scales, budget: budget, heads: known, selectionLayers: settings.selectionLayers ?? [0, 9, 18, 26])
    }
}

/// The settings in a file, of which each may be missing.
private struct PS3ConfigurationFile: Decodable {
    struct Settings: Decodable {
        var model: String?
        var sides: [Int]?
        var budget: Int?
        var perScale: [Int]?
        var selectionLayers: [Int]?
        var isRADIO: Bool?

        enum CodingKeys: String, CodingKey {
            case model = "model_name"
            case sides = "ps3_scales"
            case budget = "max_select_num"
            case perScale = "max_select_num_each_scale"
            case selectionLayers = "select_based_on_layer"
            case isRADIO = "radio"
        }
    }

    var vision: Settings?
    var own: Settings

    enum CodingKeys: String, CodingKey { case vision = "vision_config" }

    init(from decoder: any Decoder) throws {
        vision = try decoder.container(keyedBy: CodingKeys.self).decodeIfPresent(Settings.self, forKey: .vision)
        own = try Settings(from: decoder)
    }
}
