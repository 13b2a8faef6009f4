# saaz_embed(<target> <file>...): compiles files into <target>, to be found through embedded_files() (src/cli/embedded.h)
# under their path in the source tree; NAME=PATH embeds a file from elsewhere, under that name. The assembler includes
# their bytes, so a large file costs no compile time.
function(saaz_embed target)
  set(blocks "")
  set(rows "")
  set(inputs "")
  set(index 0)
  foreach(item IN LISTS ARGN)
    if(item MATCHES "^([^=]+)=(.+)$")
      set(name "${CMAKE_MATCH_1}")
      set(path "${CMAKE_MATCH_2}")
    else()
      set(name "${item}")
      set(path "${CMAKE_SOURCE_DIR}/${item}")
    endif()
    list(APPEND inputs "${path}")
    string(APPEND blocks
      "__asm__(\".section .rodata\\n.balign 64\\nsaaz_embedded_${index}:\\n.incbin \\\"${path}\\\"\\n\"\n"
      "        \"saaz_embedded_${index}_end:\\n.byte 0\\n.previous\\n\");\n"
      "extern \"C\" const char saaz_embedded_${index}[], saaz_embedded_${index}_end[];\n")
    string(APPEND rows
      "      {\"${name}\", between(saaz_embedded_${index}, saaz_embedded_${index}_end)},\n")
    math(EXPR index "${index} + 1")
  endforeach()
  set(source "${CMAKE_BINARY_DIR}/embedded_files.cc")
  file(GENERATE OUTPUT "${source}" CONTENT "// Written by cmake/embed.cmake.
#include \"cli/embedded.h\"

${blocks}
namespace saaz {
namespace {
std::string_view between(const char* begin, const char* end) { return {begin, static_cast<size_t>(end - begin)}; }
}  // namespace
std::span<const EmbeddedFile> embedded_files() {
  static const EmbeddedFile kFiles[] = {
${rows}  };
  return kFiles;
}
}  // namespace saaz
")
  set_source_files_properties("${source}" PROPERTIES OBJECT_DEPENDS "${inputs}")
  target_sources(${target} PRIVATE "${source}")
endfunction()

# saaz_web_files(<variable> <target>): what the pages need, as arguments of saaz_embed: our own files of web/, Chart.js
# as Debian has it, and Noto Sans Arabic packed as WOFF2 (497 KB become 160).
function(saaz_web_files variable target)
  file(GLOB files CONFIGURE_DEPENDS RELATIVE ${CMAKE_SOURCE_DIR} web/*.html web/*.js web/*.css)
  set(chart /usr/share/javascript/chart.js/chart.min.js)
  if(NOT EXISTS ${chart})
    message(FATAL_ERROR "${chart} is missing: apt-get install libjs-chart.js")
  endif()
  list(APPEND files "web/chart.min.js=${chart}")
  find_program(WOFF2_COMPRESS woff2_compress REQUIRED)
  set(folder ${CMAKE_BINARY_DIR}/web)
  file(MAKE_DIRECTORY ${folder})
  foreach(weight Regular Bold)
    set(font /usr/share/fonts/truetype/noto/NotoSansArabic-${weight}.ttf)
    if(NOT EXISTS ${font})
      message(FATAL_ERROR "${font} is missing: apt-get install fonts-noto-core")
    endif()
    set(packed ${folder}/NotoSansArabic-${weight}.woff2)
    add_custom_command(OUTPUT ${packed}
      COMMAND ${CMAKE_COMMAND} -E copy ${font} ${folder}
      COMMAND ${WOFF2_COMPRESS} ${folder}/NotoSansArabic-${weight}.ttf > ${folder}/${weight}.log 2>&1
      DEPENDS ${font} VERBATIM)
    target_sources(${target} PRIVATE ${packed})
    list(APPEND files "web/NotoSansArabic-${weight}.woff2=${packed}")
  endforeach()
  set(${variable} ${files} PARENT_SCOPE)
endfunction()
