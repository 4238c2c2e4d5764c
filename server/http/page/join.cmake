# Makes the page, one file, a C++ string: cmake -DOUTPUT=FILE -P join.cmake
set(folder ${CMAKE_CURRENT_LIST_DIR})
file(READ ${folder}/index.html page)
file(READ ${folder}/style.css style)
set(script "\"use strict\";\n")
# In this order: each uses those before it.
foreach(part arithmetic attention files dom server steps masks heads rows blocks live main)
  file(READ ${folder}/${part}.js text)
  string(APPEND script "${text}")
endforeach()
string(REPLACE "@STYLE@" "${style}" page "${page}")
string(REPLACE "@SCRIPT@" "${script}" page "${page}")
set(delimiter "PAGE")
if(page MATCHES "\\)${delimiter}\"")
  message(FATAL_ERROR "the page has the text )${delimiter}\", which ends the string")
endif()
file(WRITE ${OUTPUT} "// Made by server/http/page/join.cmake.
#include \"server/http/page.h\"

namespace attention::server {

const absl::string_view kPageText = R\"${delimiter}(${page})${delimiter}\";

}  // namespace attention::server
")
